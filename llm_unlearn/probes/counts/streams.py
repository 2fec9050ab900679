"""Documents in plain text and JSON lines, also compressed."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from llm_unlearn.probes.counts.documents import BATCH, UNIT, Batch, Source, TextFormat, Unit, encoded
from llm_unlearn.probes.counts.normalise import DOCUMENT_END
from llm_unlearn.suggest import unknown

Border = re.Pattern[bytes] | None


def cut_stream(source: Source, form: TextFormat) -> list[Unit]:
    """Stretches of about `UNIT` bytes that begin and end with a document; a compressed file is one."""
    border = _border(source, form)
    cuts = [0]
    if border and not source.is_gzip:
        with source.path.open("rb") as file:
            for nominal in range(UNIT, source.size, UNIT):
                if nominal > cuts[-1]:
                    cuts.append(_next_document(file, nominal, border, source.size))
    cuts.append(source.size)
    return [Unit(source, start, stop) for start, stop in zip(cuts, cuts[1:], strict=False) if start < stop]


def read_stream(unit: Unit, form: TextFormat, position: int) -> Iterator[Batch]:
    """The documents of a unit from a position on.

    Raises:
        ValueError: a gzip stream is cut off or damaged, a line is not JSON, or has no text; the message says where.
    """
    source, border = unit.source, _border(unit.source, form)
    with source.path.open("rb") as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if source.is_gzip else raw
        at, before = position, 0
        try:
            stream.seek(position)
            for data in _whole_documents(stream, position, None if source.is_gzip else unit.stop, border):
                texts = _texts(data, at, source, form, border)
                at += len(data)
                done = raw.tell() if source.is_gzip else at - position
                yield Batch(texts, at, done - before)
                before = done
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{source.path} is cut off or damaged: its gzip stream breaks behind {at} bytes of text, near byte "
                f"{raw.tell()} of the file ({error}). Copy the file again; nothing of it is counted."
            ) from error


def _border(source: Source, form: TextFormat) -> Border:
    """What ends a document; None where only the file does."""
    if source.kind == "lines":
        return re.compile(rb"\n")
    if form.separator is None:
        return re.compile(rb"\n[ \t\r]*\n\s*")
    return re.compile(rb"(?:" + re.escape(form.separator.encode()) + rb")+") if form.separator else None


def _next_document(file: BinaryIO, offset: int, border: re.Pattern[bytes], size: int) -> int:
    """The first document that begins behind an offset, or the end of the file."""
    file.seek(offset)
    data = b""
    while block := file.read(max(BATCH, len(data))):
        data += block
        if match := border.search(data):
            return offset + match.end()
    return size


def _whole_documents(stream: Any, position: int, stop: int | None, border: Border) -> Iterator[bytes]:
    """Stretches of a stream that end with a document."""
    rest = b""
    while True:
        # A document longer than a batch is read in ever longer blocks, so that the work stays linear in its length.
        want = max(BATCH, len(rest))
        block = stream.read(want if stop is None else min(want, stop - position))
        if not block:
            break
        position += len(block)
        rest += block
        if cut := _last_end(rest, border):
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _last_end(data: bytes, border: Border) -> int:
    """Where the last whole document ends, with what ends it; 0 where none does."""
    end = 0
    if border is not None:
        # Mostly the last few thousand bytes have one.
        for start in (max(0, len(data) - 10_000), 0):
            for match in border.finditer(data, start):
                end = match.end()
            if end:
                break
    return end


def _texts(data: bytes, at: int, source: Source, form: TextFormat, border: Border) -> bytes:
    if source.kind == "lines":
        return _texts_of_lines(data, at, source, form)
    data = data.replace(DOCUMENT_END, b" ")
    if border is None:
        return data if form.keeps(source, 0) else b""
    if form.sample == 1:
        return border.sub(DOCUMENT_END, data)
    kept, start = [], 0
    for end, begin in [*(match.span() for match in border.finditer(data)), (len(data), len(data))]:
        document = data[start:end]
        # Its first character, since the white space before it may have been cut anywhere.
        if form.keeps(source, at + start + len(document) - len(document.lstrip())):
            kept.append(document)
        start = begin
    return DOCUMENT_END.join(kept)


def _texts_of_lines(data: bytes, at: int, source: Source, form: TextFormat) -> bytes:
    texts, field = [], form.text_field
    for line in io.BytesIO(data):
        start, at = at, at + len(line)
        if not line.strip() or not form.keeps(source, start):
            continue
        try:
            row = json.loads(line.removeprefix(b"\xef\xbb\xbf").rstrip())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{_line_at(source, start)} is cut or not JSON ({error.msg} at character {error.pos + 1}): mend the "
                "line or copy the file again."
            ) from error
        except UnicodeDecodeError as error:
            place = _line_at(source, start)
            raise ValueError(f"{place} is not text in UTF-8 ({error.reason}): save it in that encoding.") from error
        if not isinstance(row, dict):
            place = _line_at(source, start)
            raise ValueError(f'{place} is a {type(row).__name__}: write one object, {{"{field}": ...}}, per line.')
        if field not in row:
            place = _line_at(source, start)
            raise ValueError(f"{place}: {unknown('field', field, row)} Name the one with the text, `--text_field`.")
        if not isinstance(row[field], str):
            place, value = _line_at(source, start), f"{row[field]!r:.50}"
            raise ValueError(f"{place} has {value} as `{field}`: give a text, or name another with `--text_field`.")
        texts.append(encoded(row[field]))
    return DOCUMENT_END.join(texts)


def _line_at(source: Source, offset: int) -> str:
    """The line that begins at an offset, for a message; only then are lines worth counting."""
    number = 1
    with source.path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if source.is_gzip else raw
        while offset > 0 and (block := file.read(min(offset, BATCH))):
            number += block.count(b"\n")
            offset -= len(block)
    return f"Line {number} of {source.path}"
