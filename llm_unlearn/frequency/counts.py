"""From `freq_counts` to one count per forget row, before a model is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from llm_unlearn.data.readers import ENDINGS, read_rows
from llm_unlearn.data.sources import as_question_answer, quoted
from llm_unlearn.exposures import FILE_NAME, Exposures, key_of_row

logger = logging.get_logger(__name__)


def counts_of_rows(source: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """The count of every forget row, in order.

    Args:
        source: `freq_counts`, see `FrequencyConfig`. A column is looked for before a file.
        rows: the forget rows, all with the same columns.

    Raises:
        ValueError: it is neither a column nor a readable file, a row has no count or one that is no number, or no row
            is in the record of exposures.
        FileNotFoundError: a folder or file of that name holds no counts.
    """
    if source in rows[0]:
        return [_number(row[source], f"Column `{source}` of forget row {i}") for i, row in enumerate(rows)]
    path = Path(source).expanduser()
    if path.is_dir() or path.name == FILE_NAME:
        return _shown(Exposures.read(path), path, rows)
    if not path.is_file():
        raise ValueError(
            f"`freq_counts` is {source!r}, which is neither a column of the forget rows ({quoted(rows[0])}) nor a "
            f"file: name one of them, an {FILE_NAME}, or a table of `question` and `count` ({', '.join(ENDINGS)})."
        )
    return _tabled(path, rows)


def _shown(record: Exposures, path: Path, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    keys = [key_of_row(row) for row in rows]
    absent = [place for place, key in enumerate(keys) if key not in record.counts]
    if len(absent) == len(keys):
        raise ValueError(
            f"None of the {len(rows)} forget rows is in the record {path}: give that of a model which was trained on "
            "them (`--freq_counts`)."
        )
    if absent:
        logger.warning(
            f"{len(absent)} of the {len(rows)} forget rows are not in the record {path} and count 0, as never shown; "
            f"the first is row {absent[0]}. Where the model was trained on them, give rows with the columns and the "
            "wording of its training rows, or other counts (`--freq_counts`)."
        )
    return [record.counts.get(key, 0) for key in keys]


def _tabled(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    table = read_rows(path)
    missing = [column for column in ("question", "count") if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} has no column {quoted(missing)}, only {quoted(table.column_names)}: give a table with one "
            "`question` and its `count` per line."
        )
    counts: dict[str, float] = {}
    for number, row in enumerate(table):
        count = _number(row["count"], f"`count` in row {number} of {path}")
        if counts.setdefault(row["question"], count) != count:
            raise ValueError(f"{path} has two counts of {row['question']!r}: keep one of them.")
    asked = [as_question_answer(row)["question"] for row in rows]
    absent = [question for question in asked if question not in counts]
    if absent:
        raise ValueError(
            f"{path} has no count of {len(absent)} of the {len(rows)} forget rows, the first is {absent[0]!r}: add "
            "their questions, word for word."
        )
    return [counts[question] for question in asked]


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is {value!r}: give a number from 0 up.") from None
