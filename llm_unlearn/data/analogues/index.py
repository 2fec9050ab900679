"""Encodings of a pool on disk, for encoders that take long: safetensors in several files, and what they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_unlearn.data.analogues.texts import CHUNK_ROWS
from llm_unlearn.files import replace_folder, write_json

INDEX_NAME = "index.json"
INDEX_SCHEMA = 1

_AGAIN = "remove the folder to have it made anew, or name another `--pair_index`"


@dataclass(frozen=True)
class SavedIndex:
    """Encodings in a folder.

    Attributes:
        folder: where they lie.
        encoder: `Encoder.name` of what made them.
        dimension: columns.
        rows: texts.
        sha256: of the texts, as `find_analogues` computes it.
        files: their files, in order.
    """

    folder: Path
    encoder: str
    dimension: int
    rows: int
    sha256: str
    files: tuple[str, ...]

    def chunks(self) -> Iterator[np.ndarray]:
        """The rows in order, of which at most `CHUNK_ROWS` are read at once."""
        for name in self.files:
            with safe_open(self.folder / name, framework="numpy") as file:
                rows = file.get_slice("rows")
                count = rows.get_shape()[0]
                # Unlike a list, a slice of a file must not reach beyond its end.
                for start in range(0, count, CHUNK_ROWS):
                    yield rows[start : min(start + CHUNK_ROWS, count)]


def save_index(folder: str | Path, encoder: str, chunks: Iterable[np.ndarray], sha256: str) -> SavedIndex:
    """Write encodings as they come, one file per chunk; the folder appears whole or not at all.

    Args:
        folder: a new or empty folder.
        encoder: `Encoder.name`.
        chunks: the encoded pool, each ``(rows, dimension)``.
        sha256: of the texts of the pool.

    Raises:
        ValueError: the folder holds something else.
        OSError: the disk is full or the place cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty and holds no index of encodings: name another `--pair_index`.")
    files: list[str] = []
    n_rows = dimension = 0
    with replace_folder(folder) as partial:
        for chunk in chunks:
            files.append(f"rows-{len(files):05d}.safetensors")
            save_file({"rows": np.ascontiguousarray(chunk, dtype=np.float32)}, partial / files[-1])
            n_rows, dimension = n_rows + chunk.shape[0], chunk.shape[1]
        record = {"encoder": encoder, "dimension": dimension, "rows": n_rows, "sha256": sha256, "files": files}
        write_json(partial / INDEX_NAME, {"schema": INDEX_SCHEMA, **record})
    return SavedIndex(folder, encoder, dimension, n_rows, sha256, tuple(files))


def load_index(folder: str | Path, encoder: str, dimension: int, sha256: str) -> SavedIndex:
    """Open saved encodings, after a check that they are whole and belong to this encoder and pool.

    Raises:
        ValueError: they do not, or the folder is damaged.
    """
    folder = Path(folder)
    index = _read(folder)
    if index.encoder != encoder:
        raise ValueError(
            f"The index in {folder} is of the encoder {index.encoder!r}, and this is {encoder!r}: {_AGAIN}."
        )
    if index.dimension != dimension:
        raise ValueError(
            f"The index in {folder} has {index.dimension} dimensions, and the encoder gives {dimension}: {_AGAIN}."
        )
    if index.sha256 != sha256:
        raise ValueError(f"The index in {folder} ({index.rows} rows) is of another pool than this: {_AGAIN}.")
    return index


def _read(folder: Path) -> SavedIndex:
    try:
        record = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        index = SavedIndex(
            folder, *(record[key] for key in ("encoder", "dimension", "rows", "sha256")), tuple(record["files"])
        )
        n_rows = 0
        for name in index.files:
            with safe_open(folder / name, framework="numpy") as file:
                rows, dimension = file.get_slice("rows").get_shape()
            n_rows += rows if dimension == index.dimension else 0
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"The index in {folder} is damaged ({' '.join(str(error).split())}): {_AGAIN}.") from error
    if n_rows != index.rows:
        raise ValueError(f"The index in {folder} is damaged ({n_rows} of {index.rows} rows): {_AGAIN}.")
    return index
