"""What a corpus consists of, and how its documents lie in files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

BATCH = 1 << 20
"""Bytes of text that are counted at once: enough for arrays, and few enough for a cache."""

UNIT = 1 << 26
"""Bytes of a file that one process takes at a time."""


@dataclass(frozen=True)
class TextFormat:
    r"""How documents lie in files, and which of them are read.

    Attributes:
        text_field (`str`, *optional*, defaults to `"text"`):
            The key or column with the text, in all but plain text.
        separator (`str` or `None`, *optional*, defaults to `None`):
            What stands between the documents of a plain text, such as `"<|endoftext|>"`; unset, blank lines; empty,
            nothing does, and a file is one document. Memory holds the longest document.
        sample (`float`, *optional*, defaults to 1.0):
            Share of the documents to read, above 0 and at most 1.
        seed (`int`, *optional*, defaults to 0):
            Which documents those are.

    Raises:
        ValueError: a value is not one of those named.
    """

    text_field: str = "text"
    separator: str | None = None
    sample: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.text_field:
            raise ValueError("`text_field` is empty: name the key or column with the text, such as text.")
        if not 0 < self.sample <= 1:
            raise ValueError(f"`sample` is {self.sample}: give a share above 0 and at most 1, such as 0.1.")

    def keeps(self, source: Source, position: int) -> bool:
        """Whether the document that begins at a place belongs to the sample, whoever reads it and when."""
        if self.sample == 1:
            return True
        digest = hashlib.blake2b(f"{self.seed}:{source.name}:{position}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.sample * 2**64


@dataclass(frozen=True)
class Source:
    """A file of a corpus, or a data set on disk.

    Attributes:
        path: where it is.
        name: its path within the corpus.
        kind: `"text"`, `"lines"`, `"parquet"` or `"dataset"`.
        files: the files whose bytes it consists of.
        size: their bytes.
    """

    path: Path
    name: str
    kind: str
    files: tuple[Path, ...]
    size: int

    @property
    def is_gzip(self) -> bool:
        """Whether it can be read from its beginning only."""
        return self.path.name.endswith(".gz")


@dataclass(frozen=True)
class Unit:
    """A part of a source: bytes or rows from `start` to `stop`, or all of it where it is compressed."""

    source: Source
    start: int
    stop: int


@dataclass(frozen=True)
class Batch:
    """Whole documents.

    Attributes:
        texts: UTF-8 with `normalise.DOCUMENT_END` between documents.
        position: where the unit goes on, in bytes (of text, where it is compressed) or rows.
        read: bytes of the file that this batch took, for a progress bar.
    """

    texts: bytes
    position: int
    read: int


def encoded(text: str) -> bytes:
    """A document as a part of `Batch.texts`."""
    # JSON can hold halves of surrogate pairs, which no text has; they become question marks.
    return text.replace("\0", " ").encode("utf-8", "replace")
