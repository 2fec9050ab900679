"""The documents of a corpus: one file, a data set on disk, or all files of a folder.

A corpus is cut into units that several processes read apart, and that can be taken up again behind any batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llm_unlearn.probes.counts.columns import cut_table, read_table
from llm_unlearn.probes.counts.documents import Batch, Source, TextFormat, Unit
from llm_unlearn.probes.counts.streams import cut_stream, read_stream

ENDINGS = {
    ".txt": "text",
    ".txt.gz": "text",
    ".jsonl": "lines",
    ".jsonl.gz": "lines",
    ".json.gz": "lines",  # as Dolma names its files
    ".parquet": "parquet",
}
"""How the names of readable files end, and how each is read."""


def find_sources(path: str | Path) -> tuple[Source, ...]:
    """All readable files of a corpus, in the order of their names.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: nothing there can be read, or it is a data set of several splits.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path}: give the text to count in, as `corpus:PATH`.")
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        raise ValueError(
            f"{path} has the splits {', '.join(splits)}: give the folder of one, such as {path / splits[0]}."
        )
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        return (_source(path, path.name, "dataset", *sorted(path.glob("*.arrow"))),)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    sources = []
    for file in files:
        kind = next((kind for ending, kind in ENDINGS.items() if file.name.endswith(ending)), None)
        if kind and (file == path or not file.name.startswith(".")):
            name = file.name if file == path else file.relative_to(path).as_posix()
            sources.append(_source(file, name, kind, file))
    if not sources:
        raise ValueError(
            f"There is no text to count in {path}: give a file that ends in {', '.join(ENDINGS)}, a folder of such, or "
            "a data set that `save_to_disk` wrote."
        )
    return tuple(sources)


def cut_into_units(source: Source, form: TextFormat) -> list[Unit]:
    """Parts of a source that can be read apart; none where it is empty.

    Raises:
        ValueError: a table is damaged, or has no column with the text.
    """
    return (cut_stream if source.kind in {"text", "lines"} else cut_table)(source, form)


def read(unit: Unit, form: TextFormat, position: int | None = None) -> Iterator[Batch]:
    """The documents of a unit; with the position of a batch, those behind it.

    Raises:
        ValueError: the file is cut off or damaged, a line is not JSON, or a text is missing; the message says where.
    """
    reader = read_stream if unit.source.kind in {"text", "lines"} else read_table
    yield from reader(unit, form, unit.start if position is None else position)


def _source(path: Path, name: str, kind: str, *files: Path) -> Source:
    return Source(path, name, kind, files, sum(file.stat().st_size for file in files))
