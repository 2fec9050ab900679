"""True/False statements: the fact, its false twin, and ten solved examples before either.

In the evaluation released with arXiv:2504.05058 every statement is true, so that a model that always says "False" looks
perfectly unlearned, and one of the ten examples is labelled wrongly. Here each fact is stated twice, once with its
object exchanged, and half of the examples are false.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_unlearn.probes.answers import contains
from llm_unlearn.probes.facts import Fact

SHOTS = (
    ("Fire is hot.", True),
    ("A week has nine days.", False),
    ("Cats have eight legs.", False),
    ("Snow is cold.", True),
    ("Fish live in water.", True),
    ("Honey tastes salty.", False),
    ("Triangles have three sides.", True),
    ("Stones are softer than bread.", False),
    ("The night is brighter than the day.", False),
    ("Birds lay eggs.", True),
)
"""The examples: what everybody knows and no list of facts asks, half of it true, in an order without a pattern."""

QUESTION = "True or False:"
"""What stands behind every statement."""

WORDS = ("True", "False")
"""The two answers."""


def statement(fact: Fact, name: str) -> str:
    """The fact as a sentence, with `name` for its object: its `template`, or one made of question and answer."""
    if fact.template is None:
        return f'The answer to the question "{fact.question}" is "{name}".'
    return fact.template.replace("{subject}", fact.subject).replace("{object}", name)


def example(text: str, word: str, chat: bool) -> dict[str, Any]:
    """A statement behind the solved examples, answered with `word`, in a form that an `ExampleTokenizer` takes.

    Args:
        text: the statement.
        word: "True" or "False".
        chat: whether examples are turns of a conversation, or lines of text.
    """
    turns = [(f"{shot} {QUESTION}", WORDS[0] if true else WORDS[1]) for shot, true in SHOTS]
    if not chat:
        lines = "".join(f"{asked} {answer}\n" for asked, answer in turns)
        return {"prompt": f"{lines}{text} {QUESTION}", "completion": f" {word}"}
    messages = [
        message
        for asked, answer in [*turns, (f"{text} {QUESTION}", word)]
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    ]
    return {"messages": messages}


def about_shots(facts: Sequence[Fact]) -> list[str]:
    """Ids of facts that an example gives away, because it names subject and object."""
    return [
        fact.id
        for fact in facts
        for text, _ in SHOTS
        if any(contains(text, name) for name in fact.subject_names)
        and any(contains(text, name) for name in fact.object_names)
    ]
