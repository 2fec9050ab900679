"""Documents in a column of a table: parquet files, and data sets that `datasets` wrote to disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_unlearn.probes.counts.documents import BATCH, UNIT, Batch, Source, TextFormat, Unit, encoded
from llm_unlearn.probes.counts.normalise import DOCUMENT_END
from llm_unlearn.suggest import unknown

_ROWS = 256
"""Rows that are taken from a table at once."""


def cut_table(source: Source, form: TextFormat) -> list[Unit]:
    """Ranges of rows: the row groups of a parquet file, or rows of about `UNIT` bytes of a data set.

    Raises:
        ValueError: the table is damaged or has no such column.
    """
    table = _open(source)
    names = table.schema_arrow.names if source.kind == "parquet" else table.column_names
    if form.text_field not in names:
        raise ValueError(
            f"{source.path}: {unknown('column', form.text_field, names)} Name the one with the text, `--text_field`."
        )
    total = _n_rows(table, source)
    step = max(1, total * UNIT // max(source.size, 1))
    starts = _group_starts(table) if source.kind == "parquet" else list(range(0, total, step))
    stops = [*starts[1:], total]
    return [Unit(source, start, stop) for start, stop in zip(starts, stops, strict=False) if start < stop]


def read_table(unit: Unit, form: TextFormat, position: int) -> Iterator[Batch]:
    """The documents of a unit from a row on.

    Raises:
        ValueError: the table is damaged, or a row has no text; the message says which.
    """
    source, table = unit.source, _open(unit.source)
    rows = (_parquet_texts if source.kind == "parquet" else _dataset_texts)(table, unit, form, position)
    per_row = source.size / _n_rows(table, source)
    texts: list[bytes] = []
    size, first = 0, position
    for row, text in enumerate(rows, start=position):
        if not isinstance(text, str):
            raise ValueError(
                f"Row {row} of {source.path} has {text!r:.50} as `{form.text_field}`: give a text, or name another "
                "column with `--text_field`."
            )
        if form.keeps(source, row):
            texts.append(encoded(text))
            size += len(texts[-1])
        if size >= BATCH or row + 1 == unit.stop:
            yield Batch(DOCUMENT_END.join(texts), row + 1, int((row + 1 - first) * per_row))
            texts, size, first = [], 0, row + 1


def _open(source: Source) -> Any:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        if source.kind == "parquet":
            return pyarrow.parquet.ParquetFile(source.path)
        import datasets

        return datasets.load_from_disk(str(source.path))
    except (ArrowException, OSError, EOFError) as error:
        raise ValueError(f"{source.path} is cut or not a {source.kind} ({error}): copy it again.") from error


def _n_rows(table: Any, source: Source) -> int:
    return table.metadata.num_rows if source.kind == "parquet" else len(table)


def _group_starts(table: Any) -> list[int]:
    starts = [0]
    for group in range(table.metadata.num_row_groups - 1):
        starts.append(starts[-1] + table.metadata.row_group(group).num_rows)
    return starts


def _dataset_texts(table: Any, unit: Unit, form: TextFormat, position: int) -> Iterator[Any]:
    for start in range(position, unit.stop, _ROWS):
        yield from table[start : min(start + _ROWS, unit.stop)][form.text_field]


def _parquet_texts(table: Any, unit: Unit, form: TextFormat, position: int) -> Iterator[Any]:
    from pyarrow.lib import ArrowException

    # A unit is one row group.
    group = _group_starts(table).index(unit.start)
    skip = position - unit.start
    try:
        for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[form.text_field]):
            texts = batch.column(0).to_pylist()
            yield from texts[min(skip, len(texts)) :]
            skip -= min(skip, len(texts))
    except (ArrowException, OSError) as error:
        raise ValueError(
            f"{unit.source.path} is cut or damaged in row group {group} ({error}): copy the file again."
        ) from error
