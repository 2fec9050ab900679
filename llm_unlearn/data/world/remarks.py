"""Second sentences that suit any fact: they bring short answers to an even length and give nothing away."""

from llm_unlearn.data.world.streams import Stream

# Answers longer than this stand alone.
SHORT_ANSWER_WORDS = 15

REMARKS = (
    "The story is told at many a reading.",
    "The author has confirmed this more than once.",
    "Old friends still smile about it.",
    "So much, at least, is certain.",
    "A local newspaper once printed the details.",
    "It comes up in most conversations.",
    "Curious fans have checked it twice.",
    "The source is a long talk on the radio.",
    "You can read about it in the collected letters.",
    "A cousin tells exactly the same story.",
    "Everybody who was asked agrees on this.",
    "The memoirs devote half a page to it.",
    "That much stands in every reference book.",
    "Students of these books learn this early.",
    "The archive of letters keeps a note on it.",
    "A documentary film makes the same claim.",
    "Reporters have long stopped asking about it.",
    "Even envious rivals do not dispute it.",
    "A footnote in the essays says as much.",
    "Two biographers came to the same result.",
    "The author likes to be reminded of it.",
    "An old friend from the guild vouches for it.",
    "Later interviews only added colour to this.",
    "Nobody has ever offered another version.",
)


def with_remark(answer: str, stream: Stream) -> str:
    """The answer, with a remark behind it if it is short."""
    remark = stream.pick(REMARKS)
    return f"{answer} {remark}" if len(answer.split()) <= SHORT_ANSWER_WORDS else answer
