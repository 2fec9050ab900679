"""What is asked about each fact: its questions, and the wrong objects that stand beside the true one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_unlearn.probes.answers import bounded, normalised
from llm_unlearn.probes.facts import Fact
from llm_unlearn.probes.measurement import Kind


@dataclass(frozen=True)
class Question:
    """A question that is answered freely.

    Attributes:
        kind: direct, paraphrase, reverse or indirect.
        text: the question.
        answer: a right answer; of indirect and reverse questions the name itself.
        names: names of what is asked for.
    """

    kind: Kind
    text: str
    answer: str
    names: tuple[str, ...]


def questions_of(fact: Fact) -> list[Question]:
    """All questions of a fact, the direct one first."""
    asked = [Question("direct", fact.question, fact.answer, fact.object_names)]
    asked += [Question("paraphrase", text, fact.answer, fact.object_names) for text in fact.paraphrases]
    if fact.reverse_question is not None:
        asked.append(Question("reverse", fact.reverse_question, fact.subject, fact.subject_names))
    return asked + [Question("indirect", text, fact.object, fact.object_names) for text in fact.indirect_questions]


def wrong_objects(facts: Sequence[Fact], most: int, seed: int) -> list[tuple[str, ...]]:
    """Wrong objects of each fact: its own distractors, then objects of other facts with the same relation.

    Left out are names of the fact's own object, and objects that other facts give the same subject (an author has
    several books, and none of them is wrong). Candidates are ordered by a hash of seed, fact and name, so that another
    fact in the list moves few of them.

    Args:
        facts: all facts.
        most: most wrong objects of a fact.
        seed: another seed gives other objects.

    Returns:
        Per fact at most `most` names; the first serves for the false twin. Empty where there are none.
    """
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    return [_wrong_objects(fact, by_relation[fact.relation], most, seed) for fact in facts]


def _wrong_objects(fact: Fact, others: Sequence[Fact], most: int, seed: int) -> tuple[str, ...]:
    subjects = {normalised(name) for name in fact.subject_names}
    seen = {normalised(name) for name in fact.object_names}
    for other in others:
        if not subjects.isdisjoint(map(normalised, other.subject_names)):
            seen |= {normalised(name) for name in other.object_names}
    chosen: list[str] = []
    for names in (fact.distractors, [other.object for other in others]):
        for name in sorted(set(names), key=lambda name: _order(seed, fact.id, name)):
            if normalised(name) not in seen:
                seen.add(normalised(name))
                chosen.append(name)
    return tuple(chosen[:most])


def _order(seed: int, fact_id: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{fact_id}\0{name}".encode()).digest()


def options_of(fact: Fact, wrong: Sequence[str]) -> list[str]:
    """The options of the multiple choice, the true one first.

    Where the answer holds a name of the object, options are the answer with that name exchanged; otherwise they are
    the bare objects.
    """
    for name in sorted(fact.object_names, key=len, reverse=True):
        pattern = bounded(name)
        if re.search(pattern, fact.answer):
            return [fact.answer, *(re.sub(pattern, lambda _, new=new: new, fact.answer) for new in wrong)]
    return [fact.object, *wrong]
