"""Counts from a table: computed elsewhere, or any number that says how popular a fact is."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_unlearn.data.readers import LISTED_ENDINGS, ending_of, read_rows
from llm_unlearn.probes.counts.record import FactCount, FactCounts, is_counts_file, read_counts
from llm_unlearn.probes.facts import Fact, listed
from llm_unlearn.suggest import unknown

_COUNT_COLUMNS = ("id", "count", "count_s", "count_o", "approx")
_TRUE, _FALSE = {"true", "1", "yes"}, {"false", "0", "no", ""}


def read_count_table(path: Path, facts: Sequence[Fact]) -> FactCounts:
    """Counts of a CSV or JSON-lines file, or of a file that `write_counts` wrote.

    Args:
        path: columns `id` and `count` and, where known, `count_s` and `count_o` (mentions of subject and object) and
            `approx` (whether the count is an estimate).
        facts: those to count; rows of others are left aside, and their number is in the provenance.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column or a fact is missing, a number is negative or none, or a fact has two rows.
    """
    _require_file(path, "counts:FILE")
    if is_counts_file(path):
        return read_counts(path).select([fact.id for fact in facts])
    rows, columns = _rows(path)
    if "count" not in columns:
        raise ValueError(f"{path}: {unknown('column', 'count', columns)} Add it, or name another: `proxy:FILE#column`.")
    counts = {}
    for place, row in rows.items():
        n_so, n_s, n_o = (_number(row, name, place) for name in _COUNT_COLUMNS[1:4])
        counts[_id(row)] = FactCount(_id(row), _given(n_so, "count", place), n_s, n_o, approx=_flag(row, place))
    return _chosen("counts", f"counts of {path.name}", counts, facts, path, "count")


def read_proxy(path: Path, column: str | None, facts: Sequence[Fact]) -> FactCounts:
    """Popularity of each fact, from a column of a CSV or JSON-lines file with a column `id`.

    Args:
        path: the file.
        column: the column; `None`, the only one besides `id`.
        facts: those to count.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the column or a fact is missing, a number is negative or none, or a fact has two rows.
    """
    _require_file(path, "proxy:FILE#column")
    rows, columns = _rows(path)
    others = [name for name in columns if name != "id"]
    if column is None:
        if len(others) != 1:
            raise ValueError(f"{path} has the columns {', '.join(others)}: name one, as `proxy:{path}#{others[0]}`.")
        column = others[0]
    if column not in others:
        raise ValueError(f"{path}: {unknown('column', column, others)}")
    counts = {
        _id(row): FactCount(_id(row), _given(_number(row, column, place), column, place)) for place, row in rows.items()
    }
    return _chosen("proxy", f"proxy: {column}", counts, facts, path, column)


def _require_file(path: Path, form: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: give one that ends in {LISTED_ENDINGS}, as `{form}`.")


def _rows(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Rows by what a message calls them, and the columns."""
    if ending_of(path) is None:
        raise ValueError(f"{path} is of no known kind: give a table that ends in {LISTED_ENDINGS}.")
    table = read_rows(path)
    if not len(table):
        raise ValueError(f"{path} has no rows: give one for each fact.")
    if "id" not in table.column_names:
        raise ValueError(f"{path}: {unknown('column', 'id', table.column_names)} It must hold the ids of the facts.")
    rows = {f"Row {number} of {path}": row for number, row in enumerate(table, start=1)}
    seen: set[str] = set()
    twice = []
    for place, row in rows.items():
        if row["id"] is None or _id(row) == "":
            raise ValueError(f"{place} has no `id`: give the id of a fact.")
        twice += [_id(row)] * (_id(row) in seen)
        seen.add(_id(row))
    if twice:
        raise ValueError(f"{path} has more than one row for {listed(dict.fromkeys(twice))}: keep one of each.")
    return rows, table.column_names


def _id(row: dict[str, Any]) -> str:
    return str(row["id"])


def _number(row: dict[str, Any], name: str, place: str) -> float | None:
    """A number from 0 up; None where the cell is empty."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{place} has {value!r} as `{name}`: give a number from 0 up.")
    return int(number) if number.is_integer() else number


def _given(number: float | None, name: str, place: str) -> float:
    if number is None:
        raise ValueError(f"{place} has no `{name}`: give a number from 0 up, or remove the fact from both files.")
    return number


def _flag(row: dict[str, Any], place: str) -> bool:
    value = str(row.get("approx") if row.get("approx") is not None else "").strip().lower()
    if value not in _TRUE | _FALSE:
        raise ValueError(f"{place} has {row['approx']!r} as `approx`: give true or false.")
    return value in _TRUE


def _chosen(
    source: Any, label: str, counts: dict[str, FactCount], facts: Sequence[Fact], path: Path, column: str
) -> FactCounts:
    ids = [fact.id for fact in facts]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    unused = len(counts.keys() - set(ids))
    provenance = {"file": path.name, "sha256": digest, "column": column, "rows": len(counts), "rows_unused": unused}
    try:
        return FactCounts(source, label, counts, provenance).select(ids)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
