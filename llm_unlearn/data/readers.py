"""Rows from local files: JSON lines (also gzipped), JSON, CSV and parquet, told apart by their endings.

The files are read by our own few lines, because "line 17 is cut" is worth more to a user than a parser's stack trace.
Nothing heavy is imported until rows are read, and no copy is left in a cache folder.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]


def ending_of(path: Path) -> str | None:
    """The ending that says how to read a file, such as `.jsonl.gz`; None where no reader fits."""
    return next((ending for ending in _READERS if path.name.endswith(ending)), None)


def read_rows(path: Path) -> Dataset:
    """All rows of a local file, in order; a column that only some rows have is None in the others.

    Raises:
        ValueError: the file is of no known kind or damaged; the message says where and what to do.
    """
    from datasets import Dataset
    from pyarrow.lib import ArrowException

    ending = ending_of(path)
    if ending is None:
        raise ValueError(f"{path} is of no known kind: give a file that ends in {LISTED_ENDINGS}.")
    try:
        rows = list(_READERS[ending](path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason}): save it in that encoding.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): compress or copy it again.") from error
    # `from_list` takes the columns of the first row alone, and would drop a column that appears later.
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except ArrowException as error:
        raise ValueError(
            f"{path} has a column with values of different kinds ({error}): give each column one kind of value."
        ) from error


def _json_lines(path: Path) -> Iterator[Row]:
    open_text: Callable[..., Any] = gzip.open if path.name.endswith(".gz") else open
    with open_text(path, "rt", encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"Line {number} of {path} is cut or not JSON ({error.msg} at character {error.pos + 1}): "
                    "mend the line or copy the file again."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(
                    f'Line {number} of {path} is a {type(row).__name__}: write one object, {{"column": ...}}, per line.'
                )
            yield row


def _json_array(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"Line {error.lineno} of {path} is cut or not JSON ({error.msg}): mend the file, or call it .jsonl if it "
            "holds one object per line."
        ) from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f'{path} is not a list of objects: write [{{"column": ...}}, ...], or one per line in a .jsonl.'
        )
    return rows


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"Line {reader.line_num} of {path} has not the {len(reader.fieldnames or ())} fields of the "
                        "first line: mend the line, or put text with commas and line breaks in double quotes."
                    )
                yield row
        except csv.Error as error:
            raise ValueError(
                f"{path} is cut or not CSV after line {reader.line_num} ({error}): mend the line, or use .jsonl."
            ) from error


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is cut or not a parquet file ({error}): copy the file again.") from error


_READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_array,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}

ENDINGS = tuple(_READERS)
"""How the names of readable files end."""

LISTED_ENDINGS = ", ".join(f"`{ending}`" for ending in ENDINGS)
"""The same for a message."""
