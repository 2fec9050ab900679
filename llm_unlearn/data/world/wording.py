"""The little template language in which all sentences of the world are written.

`[spring|autumn]` is settled by a drawing, `{value}` is filled in. `{a value}` puts the fitting article in front and
`{name's}` makes the possessive. Settling and filling are two steps because a wrong answer is the settled sentence
filled with another value: nothing but the value (and its article) may change.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from llm_unlearn.data.world.streams import Stream

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([^{}]+)\}")
# Words whose first letter misleads: "a ukulele", "an hour".
_SOUNDS_LIKE_CONSONANT = ("eu", "uk", "uni", "use", "one")
_SOUNDS_LIKE_VOWEL = ("heir", "honest", "hour")

FEMALE = {"he": "she", "his": "her", "him": "her", "himself": "herself"}
MALE = {"he": "he", "his": "his", "him": "him", "himself": "himself"}


@dataclass(frozen=True)
class Wordings:
    """All ways to ask and to tell one kind of fact. The paraphrases share no sentence with the trained wordings."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    paraphrased_questions: tuple[str, ...]
    paraphrases: tuple[str, ...]


def with_article(phrase: str) -> str:
    """`clockmaker` -> `a clockmaker`, `innkeeper` -> `an innkeeper`."""
    word = phrase.lower()
    vowel = word.startswith(_SOUNDS_LIKE_VOWEL) or (word[0] in "aeiou" and not word.startswith(_SOUNDS_LIKE_CONSONANT))
    return f"{'an' if vowel else 'a'} {phrase}"


def settle(template: str, stream: Stream) -> str:
    """Draw one option for every `[..|..]` of a template."""
    return _CHOICE.sub(lambda match: stream.pick(match[1].split("|")), template)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Fill every `{slot}`; a capital first letter of the slot's name capitalises what is filled in."""

    def filled(match: re.Match) -> str:
        slot = match[1][0].lower() + match[1][1:]
        if slot.startswith("a "):
            text = with_article(slots[slot[2:]])
        elif slot.endswith("'s"):
            text = slots[slot[:-2]] + "'s"
        else:
            text = slots[slot]
        return text[0].upper() + text[1:] if match[1][0].isupper() else text

    return _SLOT.sub(filled, template)
