"""Control texts of a request: what a model reads when it reads the same about somebody else.

A code belongs to a subject if tokens of texts about it select the code more often than tokens of control texts do
(`selection`). CodeUnlearn (arXiv 2410.10866) replaces the words of the subject by unrelated ones and leaves open how
words are found and what stands in for them; both are ours here. `swap_entities` puts names, titles, places and dates
of other subjects into the same texts, `sibling_rows` takes texts that ask the same about others.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from llm_unlearn.codebook.names import Name, any_of, find_names, lower_words, mentions, words_of
from llm_unlearn.data.analogues.search import top_k
from llm_unlearn.data.sources import EXAMPLE_FORMS, as_question_answer, form_of

Row = dict[str, Any]

_SPECIFIC = 10
"""A name is specific to rows that have it this many times as often as donor rows; a starting point."""

_CONTEXT = 6
"""What standing between the same words counts, in words by which two names differ; a starting point."""

_CHOICE = 2
"""Substitutes are drawn from this many times as many that fit best; a starting point."""


def swap_entities(
    rows: Sequence[Mapping[str, Any]],
    donors: Sequence[Mapping[str, Any]],
    *,
    aliases: Sequence[str] = (),
    variants: int = 8,
    seed: int = 0,
) -> list[Row]:
    """The rows with the names that are specific to them replaced by names from other rows.

    Names are quoted titles, dates and numbers, and runs of capitalised words (`names`). One is specific if no donor
    row has it, or a share of the rows that is `_SPECIFIC` times as large. Substitutes are names of the donors that
    stand between the same words in about as many rows and have as many words: a subject becomes another subject, a
    city another city. All through a variant a name has the same substitute, and where a part of a person's name
    stands alone, so does the part of the substitute.

    Args:
        rows: what is to be forgotten, in one of the four forms of `data.sources`.
        donors: rows about other subjects, such as the retain set.
        aliases: further names of the subject; needed in a script without capitals.
        variants: copies of each row, 1 or more, every one with other substitutes. From 8 on (our specification) no
            substitute is so frequent that its codes seem to belong to the control texts.
        seed: of the draws.

    Returns:
        ``len(rows) * variants`` rows with the columns of their form: all variants of the first, then of the next.

    Raises:
        ValueError: `variants` is below 1, nothing in the rows is specific to them, or no donor row has a name.
    """
    if variants < 1:
        raise ValueError(f"`variants` is {variants}, and every row needs a control text: give 1 or more, such as 8.")
    texts, donor_texts = [_texts(row) for row in rows], [_texts(row) for row in donors]
    common = lower_words(texts) | lower_words(donor_texts)
    names = _specific(texts, donor_texts, common, aliases)
    if not names:
        raise ValueError(
            f"None of the {len(rows)} rows to forget has a name, title or date that is not as frequent in the "
            f"{len(donors)} donor rows: name the subject in `aliases`, or give control texts of your own."
        )
    # A substitute has nothing of the subject, "Jane Roe" is none for "Jane Doe"; words such as "award" it may share.
    own_words = {
        word for name in names if not _is_date(name) for word in words_of(name.text) if word.lower() not in common
    }
    pool = [name for name in find_names(donor_texts, common).values() if own_words.isdisjoint(words_of(name.text))]
    substitutes = {name.text: drawn for name in names if (drawn := _draw(name, pool, variants, seed))}
    left = [name for name in names if name.text not in substitutes and not _is_date(name)]
    if left or not substitutes:
        raise ValueError(
            f"The {len(donors)} donor rows have nothing that could stand for {(left or names)[0].text!r}: give rows "
            "with names of other subjects, or control texts of your own."
        )
    people = [name.text for name in names if name.kind == "person"]
    swapped = []
    for row, own_texts in zip(rows, texts, strict=True):
        here = _substitutes_here(own_texts, substitutes, people, common)
        pattern = any_of(here)
        for variant in range(variants):
            chosen = {name: others[variant] for name, others in here.items()}
            swapped.append(_rewritten(row, partial(_replaced, pattern, chosen)))
    return swapped


def sibling_rows(
    rows: Sequence[Mapping[str, Any]], donors: Sequence[Mapping[str, Any]], *, per_row: int = 8
) -> list[Row]:
    """For each row to forget the donor rows that ask most nearly the same, about whomever.

    Names, titles and dates are left out; what remains of the questions (of plain text, all) is compared by the cosine
    of word counts weighted by ``1 + log(N / n)`` with N donor rows, of which n have the word. Of donor rows that are
    equally near, the first comes first.

    Args:
        rows: what is to be forgotten, in one of the four forms of `data.sources`.
        donors: rows about other subjects, such as the retain set.
        per_row: donor rows for each row, 1 or more; all of them where there are fewer.

    Returns:
        Donor rows with the columns of their form, each once, so that no test counts it twice: those of the first row,
        nearest first, then those that the next one adds.

    Raises:
        ValueError: `per_row` is below 1, or there is no donor row.
    """
    if per_row < 1 or not donors:
        raise ValueError(
            f"`per_row` is {per_row} and there are {len(donors)} donor rows: give at least one of each, such as 8 for "
            "each row."
        )
    common = lower_words(_texts(row) for some in (rows, donors) for row in some)
    words, donor_words = ([_unnamed_words(_question(row), common) for row in some] for some in (rows, donors))
    number = {word: i for i, word in enumerate(dict.fromkeys(word for own in donor_words for word in own))}
    having = np.bincount([number[word] for own in donor_words for word in set(own)], minlength=len(number))
    weights = 1 + np.log(len(donors) / having)
    queries, pool = (_unit_rows(some, number, weights) for some in (words, donor_words))
    _, nearest = top_k(queries, [pool], min(per_row, len(donors)))
    return [_rewritten(donors[i], str) for i in dict.fromkeys(nearest.ravel().tolist())]


def _specific(
    texts: Sequence[Sequence[str]], donor_texts: Sequence[Sequence[str]], common: set[str], aliases: Sequence[str]
) -> list[Name]:
    """The names that belong to the rows, the most frequent first."""
    donors = ["\n".join(own) for own in donor_texts]
    all_donors = "\n".join(donors)

    def is_specific(name: Name) -> bool:
        if name.text not in all_donors:
            return True
        whole = any_of([name.text])
        having = sum(name.text in text and whole.search(text) is not None for text in donors)
        # Once in a few rows proves nothing, so one row does not count.
        return having == 0 or (name.rows - 1) * len(donors) >= _SPECIFIC * having * len(texts)

    found = {text: name for text, name in find_names(texts, common).items() if is_specific(name)}
    # "Novelist Jane Doe" is Jane Doe, not somebody else.
    inner = [name for name in found.values() if " " in name.text and _category(name) == "name"]
    for name in inner:
        if any(other.rows > name.rows and f" {other.text} " in f" {name.text} " for other in inner):
            del found[name.text]
    for alias in aliases:
        rows = sum(any(alias in text for text in own) for own in texts)
        if rows and alias not in found:
            found[alias] = Name(alias, "person", rows, {})
    return sorted(found.values(), key=lambda name: (-name.rows, name.text))


def _draw(name: Name, pool: Sequence[Name], variants: int, seed: int) -> list[str]:
    """`variants` substitutes of a name, different ones where the pool has enough; none where it has nothing like it."""
    # With one seed for all names, each would get its substitute of the same rank.
    random_state = random.Random(f"{seed} {name.text}")

    def misfit(other: Name) -> tuple[float, float]:
        words = abs(name.text.count(" ") - other.text.count(" ")) + abs(math.log(other.rows / name.rows))
        fewer, more = sorted((name.context, other.context), key=len)
        alike = sum(share * more.get(word, 0) for word, share in fewer.items())
        return words - _CONTEXT * alike, random_state.random()

    fitting = [other for other in pool if _category(other) == _category(name)]
    if not fitting:
        fitting = [other for other in pool if _is_date(other) == _is_date(name)]
    best = [other.text for other in sorted(fitting, key=misfit)[: _CHOICE * variants]]
    random_state.shuffle(best)
    return [best[variant % len(best)] for variant in range(variants)] if best else []


def _category(name: Name) -> str:
    return name.kind if name.kind == "title" or _is_date(name) else "name"


def _is_date(name: Name) -> bool:
    return name.kind.startswith("date")


def _substitutes_here(
    texts: Sequence[str], substitutes: Mapping[str, list[str]], people: Sequence[str], common: set[str]
) -> dict[str, list[str]]:
    """What to replace in a row, and by what.

    A part of a person's name stands for the first person of which the whole name is in the row; else, if it is
    specific itself, for the first that has it.
    """
    mentioned = {mention.text for text in texts for mention in mentions(text, common)}
    here = {name: others for name, others in substitutes.items() if any(name in text for text in texts)}
    whole = [person for person in people if person in here]
    for known, owners in ((mentioned & here.keys(), people), (mentioned, whole)):
        for owner in reversed(owners):
            for part, place in _parts(owner):
                if part in known:
                    here[part] = [_part(other, *place) for other in substitutes[owner]]
    return here


def _parts(name: str) -> list[tuple[str, tuple[int, int, int]]]:
    """The shorter runs of words in a name, each with its first word, its end and the number of words in all."""
    words = name.split(" ")
    spans = ((i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return [(" ".join(words[i:j]), (i, j, len(words))) for i, j in spans if j - i < len(words)]


def _part(name: str, start: int, stop: int, n_words: int) -> str:
    """What corresponds in `name` to words `start` to `stop` of a name with `n_words`."""
    words = name.split(" ")
    if len(words) == n_words:
        return " ".join(words[start:stop])
    return words[0] if start == 0 else words[-1]


def _texts(row: Mapping[str, Any]) -> list[str]:
    form = form_of(row)
    if form == "messages":
        return [message["content"] for message in row["messages"]]
    return [row[column] for column in EXAMPLE_FORMS[form]]


def _question(row: Mapping[str, Any]) -> str:
    example = as_question_answer(row)
    return example["question"] or example["answer"]


def _rewritten(row: Mapping[str, Any], rewrite: Callable[[str], str]) -> Row:
    """The columns of the row's form, every text of them rewritten."""
    form = form_of(row)
    if form == "messages":
        return {"messages": [{**message, "content": rewrite(message["content"])} for message in row["messages"]]}
    return {column: rewrite(row[column]) for column in EXAMPLE_FORMS[form]}


def _replaced(pattern: re.Pattern, substitutes: Mapping[str, str], text: str) -> str:
    return pattern.sub(lambda match: substitutes[match[0]], text)


def _unnamed_words(text: str, common: set[str]) -> list[str]:
    """The words of a text in lower case, without names."""
    named = any_of({mention.text for mention in mentions(text, common)})
    return [word.lower() for word in words_of(named.sub(" ", text))]


def _unit_rows(texts: Sequence[Sequence[str]], number: Mapping[str, int], weights: np.ndarray) -> csr_array:
    """Weighted counts of the words that have a number, ``(texts, words)``, of length 1."""
    pairs = [(i, number[word]) for i, words in enumerate(texts) for word in words if word in number]
    at, column = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    counts = csr_array((weights[column], (at, column)), shape=(len(texts), len(weights)))
    lengths = np.sqrt(counts.multiply(counts).sum(axis=1))
    return counts.multiply(1 / np.maximum(lengths, 1e-12)[:, None]).tocsr()
