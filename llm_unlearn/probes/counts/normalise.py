"""One form for names and texts, and where the words of a text begin.

Texts are bytes of UTF-8 all the way: most of a corpus is ASCII, which C turns over without decoding it, and a name
found in bytes is a name found in the text.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Int

NORMALISATION = "NFKC, {case}, soft hyphens removed, line ends and runs of spaces as one space, v1"
"""What is done to names and texts, for provenance."""

DOCUMENT_END = b"\0"
"""Stands between documents in normalised text, and nowhere else."""

# A word broken at the end of a line; stands in the place of hyphen and line end until all else is done.
_BREAK = b"\1"

# A hyphen and a line end between two words; bytes from 0x80 up are taken for letters. The hyphen comes first, so that
# the search leaps from one to the next.
_BROKEN_WORD = re.compile(rb"-(?<=[\w\x80-\xff]-)\n[ \t]*(?=[\w\x80-\xff])")
_SOFT_HYPHEN = "\u00ad".encode()

# What NFKC keeps apart and a name does not: apostrophes, hyphens and dashes within a word, rare line ends.
_SAME = dict.fromkeys("‘’ʼ", "'") | dict.fromkeys("‐‑–−", "-") | dict.fromkeys("\x85\u2028\u2029", "\n")
_SAME_AS_ASCII = re.compile(f"[{''.join(_SAME)}]")

# Stretches beyond ASCII that lie closer together are turned over as one.
_NEAR = 16


@dataclass(frozen=True, eq=False)
class Text:
    """Normalised text of one document or of several with `DOCUMENT_END` between them.

    Attributes:
        data (`bytes`): the text.
        breaks (`np.ndarray` of integers): where a hyphen and a line end were taken out of a word, ascending.
    """

    data: bytes
    breaks: Int[np.ndarray, " breaks"]


def normalise(text: bytes, case_sensitive: bool = False) -> Text:
    r"""Bring a text into the form in which names are looked for.

    NFKC and full case folding; typographic apostrophes, hyphens and dashes as their ASCII forms; white space of any
    length as one space; soft hyphens removed. Two halves of a word that a hyphen and a line end part become one word,
    and `Text.breaks` says where: whether the hyphen belongs to the word ("Guinea-\nBissau") or not ("Wash-\nington"),
    the text does not say, so that a name matches either way (see `Matcher`).

    Args:
        text: UTF-8.
        case_sensitive: whether "Turkey" and "turkey" are to be different words.

    Raises:
        UnicodeDecodeError: the bytes are not UTF-8.
    """
    text = text.replace(b"\r\n", b"\n")
    if not text.isascii():
        text = _turn_beyond_ascii(text, case_sensitive)
        # A soft hyphen at a line end is a hyphen, and nothing elsewhere.
        text = text.replace(_SOFT_HYPHEN + b"\n", b"-\n").replace(_SOFT_HYPHEN, b"")
    if _BREAK in text:
        text = text.replace(_BREAK, b" ")
    if b"-\n" in text:
        text = _BROKEN_WORD.sub(_BREAK, text)
    text = text.translate(_TABLES[case_sensitive])
    while _has_double_space(text):
        text = text.replace(b"  ", b" ")
    if _BREAK not in text:
        return Text(text, np.zeros(0, dtype=np.int64))
    halves = text.split(_BREAK)
    return Text(b"".join(halves), np.cumsum([len(half) for half in halves[:-1]]))


def normalise_name(name: str, case_sensitive: bool = False) -> bytes:
    """A name in the form of `normalise`, without white space around it.

    Raises:
        ValueError: it has neither a letter nor a digit.
    """
    data = normalise(name.replace("\0", " ").encode("utf-8", "replace"), case_sensitive).data.strip()
    if not edges(data)[1].any():
        raise ValueError(f"The name {name!r} has neither a letter nor a digit and cannot be counted: remove it.")
    return data


def edges(data: bytes) -> tuple[Bool[np.ndarray, " bytes_and_end"], Bool[np.ndarray, " bytes_and_end"]]:
    """Where a mention may begin or end, and where the tokens begin.

    A token is a run of letters, digits, underscores and their accents. In scripts that are written without spaces
    (Han, Hiragana, Thai, Lao, Khmer, Burmese) and in Hangul, which adds particles to a word, every character is a
    token; a run of Katakana is one.

    Args:
        data: normalised text of n bytes.

    Returns:
        Two arrays of n + 1 truth values: whether there is no word on both sides of the position, and whether a token
        begins there.
    """
    kinds = np.zeros(len(data) + 2, dtype=np.uint8)
    kinds[1:-1] = np.frombuffer(data.translate(_ASCII_KINDS), dtype=np.uint8)
    if not data.isascii():
        _set_kinds_beyond_ascii(kinds[1:-1], np.frombuffer(data, dtype=np.uint8))
    pairs = ((kinds[:-1] & 7) << 4) | kinds[1:]
    found = np.frombuffer(pairs.tobytes().translate(_EDGES), dtype=np.uint8)
    return (found & 1).view(bool), (found >> 1).view(bool)


def _turn_beyond_ascii(text: bytes, case_sensitive: bool) -> bytes:
    """NFKC, simpler signs and case folding where they change anything; the rest is not even decoded."""
    places = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) >= 0x80)
    gaps = np.flatnonzero(np.diff(places) > _NEAR)
    # NFKC never reaches over an ASCII character, except that an accent joins the one before it.
    starts = np.maximum(places[np.append(0, gaps + 1)] - 1, 0)
    ends = places[np.append(gaps, len(places) - 1)] + 1
    pieces, done = [], 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        part = unicodedata.normalize("NFKC", text[start:end].decode())
        part = _SAME_AS_ASCII.sub(lambda match: _SAME[match.group()], part)
        pieces += [text[done:start], (part if case_sensitive else part.casefold()).encode()]
        done = end
    return b"".join([*pieces, text[done:]])


def _table(case_sensitive: bool) -> bytes:
    table = bytearray(range(256))
    for character in b"\t\n\v\f\r\x1c\x1d\x1e\x1f":
        table[character] = ord(" ")
    return bytes(table) if case_sensitive else bytes(table).lower()


_TABLES = {case_sensitive: _table(case_sensitive) for case_sensitive in (False, True)}

# What a character is to the words around it. _INNER marks the further bytes of a character.
_NONE, _WORD, _ALONE, _KATAKANA, _ACCENT, _INNER = 0, 1, 2, 3, 4, 8

_ASCII_KINDS = bytes(_WORD if chr(code).isalnum() and code < 128 or code == ord("_") else _NONE for code in range(256))


def _edge(before: int, after: int) -> int:
    """Bit 1: a mention may begin or end between the two; bit 2: a token begins."""
    if after & _INNER:
        return 0
    together = {(_WORD, _WORD), (_KATAKANA, _KATAKANA), (_ACCENT, _WORD)}
    if (before, after) in together or (before != _NONE and after == _ACCENT):
        return 0
    return 1 if after == _NONE else 3


def _has_double_space(text: bytes) -> bool:
    # Spaces are so common that `b"  " in text` takes thirty times as long.
    spaces = np.frombuffer(text, dtype=np.uint8) == ord(" ")
    return bool((spaces[1:] & spaces[:-1]).any())


_EDGES = bytes(_edge(pair >> 4, pair & 15) for pair in range(256))

_SINGLE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1100, 0x11FF),  # Hangul, decomposed
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x309F),  # Hiragana and signs of repetition
    (0x3400, 0x9FFF),  # Han
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x3FFFF),  # Han, extensions
)
_KATAKANA_RANGE = (0x30A0, 0x30FF)


@cache
def _kinds_of_code_points() -> Int[np.ndarray, " code_points"]:
    kinds = np.zeros(0x110000, dtype=np.uint8)
    # Beyond lie Han, set below, and nothing that is written in words.
    for code in range(0x20000):
        character = chr(code)
        if character.isalnum():
            kinds[code] = _WORD
        elif unicodedata.category(character).startswith("M"):
            kinds[code] = _ACCENT
    for first, last in _SINGLE:
        part = kinds[first : last + 1]
        part[part == _WORD] = _ALONE
    kinds[0x20000:0x40000] = _ALONE
    kinds[0xE0100:0xE01F0] = _ACCENT  # variation selectors
    first, last = _KATAKANA_RANGE
    part = kinds[first : last + 1]
    part[part == _WORD] = _KATAKANA
    return kinds


def _set_kinds_beyond_ascii(kinds: Int[np.ndarray, " bytes"], data: Int[np.ndarray, " bytes"]) -> None:
    """Write the kinds of all characters of two bytes or more, which are whole in `data`."""
    first = np.flatnonzero(data >= 0xC0)
    lead = data[first]
    length = 2 + (lead >= 0xE0) + (lead >= 0xF0)
    code = (lead & (0x7F >> length)).astype(np.int64)
    for place in (1, 2, 3):
        has = length > place
        code[has] = code[has] << 6 | (data[first[has] + place] & 0x3F)
    kind = _kinds_of_code_points()[code]
    kinds[first] = kind
    for place in (1, 2, 3):
        has = length > place
        kinds[first[has] + place] = kind[has] | _INNER
