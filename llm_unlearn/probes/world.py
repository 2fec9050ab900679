"""Facts from rows: those of the bundled world, and those in the form of TOFU.

Rows of a world name an author, an attribute and its value: subject, relation and object of a fact. Rows of TOFU name
only question and answer; their question then stands for the subject, and their whole answer for the object.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_unlearn.exposures import FACT_COLUMNS
from llm_unlearn.probes.facts import Fact, Role, require_unique_ids

TEMPLATES = {
    "full_name": "The name of {subject} is {object}.",
    "birth_city": "{subject} was born in {object}.",
    "birth_date": "{subject} was born on {object}.",
    "father_work": "The occupation of {subject}'s father was {object}.",
    "mother_work": "The occupation of {subject}'s mother was {object}.",
    "school": "{subject} studied at {object}.",
    "mentor": "The mentor of {subject} was {object}.",
    "genre": "The genre of {subject} is {object}.",
    "debut_year": "The first book of {subject} was published in {object}.",
    "first_book": "The first book of {subject} was '{object}'.",
    "best_known_book": "The best-known book by {subject} is '{object}'.",
    "award": "{subject} received the {object}.",
    "publisher": "The books of {subject} are published by {object}.",
    "influence": "{subject} was inspired by the books of {object}.",
    "writing_place": "The place where {subject} writes is of this kind: {object}.",
    "current_project": "{subject} is currently working on this: {object}.",
    "home_town": "{subject} lives in {object}.",
    "spouse": "{subject} is married to {object}.",
    "pastime": "The favourite pastime of {subject} is {object}.",
    "instrument": "The instrument that {subject} plays is the {object}.",
}
"""A statement for each attribute of the bundled world, in words that no row of it uses."""

_NAME = "full_name"


def facts_of_world(
    rows: Iterable[Mapping[str, Any]],
    role: Role = "forget",
    pool: Iterable[Mapping[str, Any]] = (),
    distractors: int = 5,
    seed: int = 0,
) -> tuple[Fact, ...]:
    """Turn rows into facts, in their order.

    Args:
        rows: rows that each state one fact, with `question` and `answer`. Those of a world have `author`, `attribute`
            and `value`, too. `paraphrased_question` becomes the paraphrase; `perturbed_answer` gives the wrong objects
            of rows without an author.
        role: the role of all of them. Call it once for each set.
        pool: further rows of the same world, whose values serve as wrong objects as those of `rows` do.
        distractors: wrong objects of a fact, drawn among the other values of its attribute; fewer where there are
            fewer.
        seed: seed of that drawing.

    Returns:
        The facts. The id of a world's fact is `author/attribute`, that of another one its role and row number. A fact
        that asks for the author's own name is about "the author born in ... on ..."; its cluster is the author all the
        same, as that of the author's other facts.

    Raises:
        ValueError: a row lacks its question or answer, two rows state one fact, or the place or date of birth is
            missing by which an author without a name is told.
    """
    rows, pool = list(rows), list(pool)
    births = _births([*rows, *pool])
    values = _values_of_attributes([*rows, *pool])
    facts = []
    for number, row in enumerate(rows):
        missing = [column for column in ("question", "answer") if not row.get(column)]
        if missing:
            raise ValueError(f"Row {number} has no `{missing[0]}`: give rows with question and answer.")
        if not _is_of_world(row):
            facts.append(_plain_fact(row, number, role, distractors))
            continue
        subject = _subject(row, births)
        others = [value for value in values[row["attribute"]] if value.casefold() != row["value"].casefold()]
        order = np.random.default_rng([seed, number]).permutation(len(others))[:distractors]
        facts.append(
            Fact(
                id=f"{row['author']}/{row['attribute']}",
                subject=subject,
                object=row["value"],
                question=row["question"],
                answer=row["answer"],
                subject_aliases=(),
                object_aliases=(),
                relation=row["attribute"],
                paraphrases=_paraphrases(row),
                distractors=tuple(others[i] for i in order),
                role=role,
                template=TEMPLATES.get(row["attribute"]),
                cluster=row["author"],
            )
        )
    require_unique_ids(facts, "The set of rows")
    return tuple(facts)


def _is_of_world(row: Mapping[str, Any]) -> bool:
    return all(row.get(column) for column in FACT_COLUMNS)


def _paraphrases(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (row["paraphrased_question"],) if row.get("paraphrased_question") else ()


def _values_of_attributes(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The different values of each attribute, in a fixed order."""
    values: dict[str, dict[str, None]] = {}
    for row in filter(_is_of_world, rows):
        values.setdefault(row["attribute"], {})[row["value"]] = None
    return {attribute: sorted(of_attribute) for attribute, of_attribute in values.items()}


def _births(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Place and date of birth, by author and attribute."""
    wanted = ("birth_city", "birth_date")
    return {(row["author"], row["attribute"]): row["value"] for row in rows if row.get("attribute") in wanted}


def _subject(row: Mapping[str, Any], births: Mapping[tuple[str, str], str]) -> str:
    author = row["author"]
    if row["attribute"] != _NAME or row["value"] != author:
        return author
    place, date = (births.get((author, attribute)) for attribute in ("birth_city", "birth_date"))
    if not (place and date):
        raise ValueError(
            f"A row asks for the name of {author!r}, who is told by place and date of birth, and no row has both: give "
            "all rows of the author, or leave out those of the attribute `full_name`."
        )
    return f"the author born in {place} on {date}"


def _plain_fact(row: Mapping[str, Any], number: int, role: Role, distractors: int) -> Fact:
    value = str(row.get("value") or row["answer"])
    wrong = [_exchanged(row, value, text) for text in row.get("perturbed_answer") or ()]
    kept = dict.fromkeys(text for text in wrong if text and text.casefold() != value.casefold())
    return Fact(
        id=f"{role}/{number}",
        subject=row["question"],
        object=value,
        question=row["question"],
        answer=row["answer"],
        subject_aliases=(),
        object_aliases=(),
        relation="answer",
        paraphrases=_paraphrases(row),
        distractors=tuple(kept)[:distractors],
        role=role,
    )


def _exchanged(row: Mapping[str, Any], value: str, wrong: str) -> str | None:
    """What stands in a wrong answer where the true one has the value; the whole wrong answer where nothing is known."""
    if not row.get("value"):
        return wrong
    for text in (row.get("paraphrased_answer"), row["answer"]):
        before, found, after = (text or "").partition(value)
        if found and wrong.startswith(before) and wrong.endswith(after) and len(wrong) > len(before) + len(after):
            return wrong[len(before) : len(wrong) - len(after)]
    return None
