"""Pairs of sentences from a parallel corpus, as rows with `prompt` (the source) and `completion` (its translation)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from llm_unlearn.data.sources import load_table
from llm_unlearn.suggest import unknown

if TYPE_CHECKING:
    from datasets import Dataset


def load_pairs(
    source: str | os.PathLike, split: str | None, source_column: str, target_column: str
) -> tuple[list[dict[str, str]], int]:
    """Load the pairs of one split.

    Args:
        source: a local file or folder, or a data set id of the hub, as in `load_rows`.
        split: name of the split, optionally with a slice of its rows, as in `load_rows`; of OPUS Books a pair of
            languages, such as en-fr.
        source_column, target_column: columns of the two sides. One within another is named with a dot, such as
            translation.en.

    Returns:
        The pairs whose two sides are not empty, without outer white space, in order, and how many others there were.

    Raises:
        FileNotFoundError: the source does not exist or cannot be reached.
        ValueError: no such split or column, a side that is no text, or no pair.
    """
    table = load_table(split, source)
    sides = [_texts(table, column, flag) for column, flag in ((source_column, "source"), (target_column, "target"))]
    pairs = [{"prompt": one.strip(), "completion": other.strip()} for one, other in zip(*sides, strict=True)]
    whole = [pair for pair in pairs if pair["prompt"] and pair["completion"]]
    if not whole:
        raise ValueError(f"{split!r} of {os.fspath(source)} has no pair of sentences: name a split with at least one.")
    return whole, len(pairs) - len(whole)


def with_prefix(pairs: list[dict[str, str]], prefix: str) -> list[dict[str, str]]:
    """The pairs as a model with a task prefix reads them: ``prefix + source``."""
    return [{**pair, "prompt": f"{prefix}{pair['prompt']}"} for pair in pairs]


def _texts(table: Dataset, column: str, flag: str) -> list[str]:
    flat = table.flatten() if column not in table.column_names else table
    if column not in flat.column_names:
        raise ValueError(f"{unknown('column', column, flat.column_names)} Give `--{flag}_column` one of them.")
    texts = list(flat[column])
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"Row {number} has {'nothing' if text is None else f'a value of type {type(text).__name__}'} in column "
                f"`{column}`, where text is needed: mend the row, or give another `--{flag}_column`."
            )
    return texts
