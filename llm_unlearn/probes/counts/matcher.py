"""All mentions of thousands of names in a text.

Most words begin no name. They are set aside by their first eight bytes, for all words of a text at once; so are the
names compared that few others begin like. Where many names begin alike ("University of ..."), an Aho-Corasick automaton
(pyahocorasick) takes as long for all of them as for one. Without that package they are compared, too: the mentions are
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from llm_unlearn.probes.counts.normalise import Text, edges

Positions = Int[np.ndarray, " places"]


@dataclass(frozen=True, eq=False)
class Mentions:
    """Mentions in the order of the text, of which no two overlap.

    Attributes:
        names: position of the name in the list of names.
        starts, ends: first byte of the mention, and the byte behind it.
    """

    names: Int[np.ndarray, " mentions"]
    starts: Int[np.ndarray, " mentions"]
    ends: Int[np.ndarray, " mentions"]


class Matcher:
    r"""Finds names in normalised text.

    A mention neither begins nor ends inside a word. From left to right, the longest name that begins at a place is the
    mention, and the next one begins behind it: where "Mexico City" is a name, no "Mexico" is found in it. A word broken
    at a line end matches with the hyphen and without: "Guinea-\nBissau" is a mention of "Guinea-Bissau" (one hyphen of
    a name may stand at a line end), and none of "Guinea".

    Args:
        names: different names, as `normalise_name` gives them.
        crowd (`int`, *optional*, defaults to 6, where both ways take about as long):
            From how many names of the same beginning on the automaton looks for them.
        automaton (`bool`, *optional*, defaults to `None`):
            Whether to use pyahocorasick; unset, where it is installed.

    Raises:
        ImportError: `automaton` is `True` and pyahocorasick is not installed.
        ValueError: there is no name, or one is given twice.
    """

    def __init__(self, names: Sequence[bytes], crowd: int = 6, automaton: bool | None = None) -> None:
        if not names or len(set(names)) < len(names):
            raise ValueError("The names to look for are none, or one is given twice: give each once.")
        patterns = _patterns(names)
        self._first = np.cumsum([0, *(len(meanings) for meanings in patterns.values())])
        flat = [meaning for meanings in patterns.values() for meaning in meanings]
        self._name, self._hyphen = np.array(flat, dtype=np.int64).T
        self._length = np.array([len(word) for word in patterns], dtype=np.int64)
        # Of names such as "(500) Days", which begin where no token does.
        self._odd_first = sorted({name[0] for name in names if not edges(name)[1][0]})
        heads = Counter(word[:_BLOCK] for word in patterns)
        crowded = {head for head, times in heads.items() if times >= crowd}
        if not (has_automaton() if automaton is None else automaton):
            crowded = set()
        parts = {alike: [] for alike in (False, True)}
        for number, word in enumerate(patterns):
            parts[word[:_BLOCK] in crowded].append((word, number))
        self._finders = [kind(parts[alike]) for alike, kind in ((False, _Compare), (True, _Automaton)) if parts[alike]]

    def find(self, text: Text, borders: Bool[np.ndarray, " n+1"], tokens: Positions) -> Mentions:
        """All mentions in a text.

        Args:
            text: normalised text.
            borders: where a mention may begin or end, and
            tokens: the places at which a token begins, as `normalise.edges` finds both.
        """
        places = tokens
        if self._odd_first:
            odd = np.isin(np.frombuffer(text.data, dtype=np.uint8), self._odd_first)
            places = np.union1d(places, np.flatnonzero(odd & borders[:-1]))
        blocks = _Blocks(text.data)
        heads = blocks.at(places)
        found = [finder.find(blocks, places, heads) for finder in self._finders]
        starts, patterns = (np.concatenate(part) for part in zip(*found, strict=True))
        ends = starts + self._length[patterns]
        inside = ~borders[ends]
        starts, ends, patterns = starts[~inside], ends[~inside], patterns[~inside]
        place, meaning = expand(self._first, patterns)
        starts, ends, hyphen = starts[place], ends[place], self._hyphen[meaning]
        split = np.flatnonzero(hyphen >= 0)
        broken = np.ones(len(starts), dtype=bool)
        broken[split] = np.isin(starts[split] + hyphen[split], text.breaks)
        starts, ends, meaning = starts[broken], ends[broken], meaning[broken]
        # Sorted by start, then by end, then a name as it stands behind one with a hyphen: the last of a start counts.
        order = np.lexsort((self._hyphen[meaning] < 0, ends, starts))
        order = order[np.append(np.diff(starts[order]) > 0, True)[: len(order)]]
        order = order[_apart(starts[order], ends[order])]
        return Mentions(self._name[meaning[order]], starts[order], ends[order])


def has_automaton() -> bool:
    """Whether pyahocorasick is installed."""
    try:
        import ahocorasick  # noqa: F401
    except ImportError:
        return False
    return True


_BLOCK = 8
"""Bytes that are compared at once, as one unsigned integer."""

_MASKS = np.array([(1 << 8 * length) - 1 for length in range(_BLOCK + 1)], dtype=np.uint64)
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: multiplicative hashing


class _Blocks:
    """The eight bytes from every place of a text on."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        # One view with overlapping items.
        self._view = np.ndarray((len(data) + 1,), dtype="<u8", buffer=data + bytes(_BLOCK), strides=(1,))

    def at(self, places: Positions) -> np.ndarray:
        return self._view[np.minimum(places, len(self.data))]


class _Heads:
    """The first eight bytes of patterns, or a shorter pattern as a whole: which words begin like one?"""

    def __init__(self, heads: Sequence[bytes]) -> None:
        """`heads` are all different; their number is their place among them."""
        self._tables = []
        for length in sorted({len(head) for head in heads}):
            mine = sorted((_integer(head), number) for number, head in enumerate(heads) if len(head) == length)
            keys, numbers = np.array([key for key, _ in mine], dtype=np.uint64), np.array([n for _, n in mine])
            # Sixteen slots for each key let one of sixteen other words pass; those are compared exactly.
            shift = np.uint64(64 - len(keys).bit_length() - 4)
            slots = np.zeros(1 << (64 - int(shift)), dtype=bool)
            slots[(keys * _MIX) >> shift] = True
            self._tables.append((_MASKS[length], shift, slots, keys, numbers))

    def find(self, heads: np.ndarray) -> tuple[Positions, Positions]:
        """Pairs of a word, by its place in `heads`, and the number of the head with which it begins."""
        words, numbers = [], []
        for mask, shift, slots, keys, number in self._tables:
            masked = heads & mask
            passed = np.flatnonzero(slots[((masked * _MIX) >> shift).view(np.int64)])
            masked = masked[passed]
            at = np.minimum(np.searchsorted(keys, masked), len(keys) - 1)
            same = keys[at] == masked
            words.append(passed[same])
            numbers.append(number[at[same]])
        return np.concatenate(words), np.concatenate(numbers)


class _Compare:
    """Compares every pattern that begins like a word, eight bytes at a time."""

    def __init__(self, patterns: list[tuple[bytes, int]]) -> None:
        by_head: dict[bytes, list[tuple[bytes, int]]] = {}
        for word, number in patterns:
            by_head.setdefault(word[:_BLOCK], []).append((word, number))
        self._heads = _Heads(list(by_head))
        # The patterns of head h are those from first[h] to first[h + 1].
        self._first = np.cumsum([0, *(len(group) for group in by_head.values())])
        flat = [pattern for group in by_head.values() for pattern in group]
        self._numbers = np.array([number for _, number in flat], dtype=np.int64)
        self._lengths = np.array([len(word) for word, _ in flat], dtype=np.int64)
        starts = range(0, int(self._lengths.max()), _BLOCK)
        self._blocks = [
            np.array([_integer(word[start : start + _BLOCK]) for word, _ in flat], dtype=np.uint64) for start in starts
        ]

    def find(self, text: _Blocks, places: Positions, heads: np.ndarray) -> tuple[Positions, Positions]:
        words, number = self._heads.find(heads)
        pair, pattern = expand(self._first, number)
        start = places[words[pair]]
        for depth in range(1, len(self._blocks)):
            rest = np.clip(self._lengths[pattern] - depth * _BLOCK, 0, _BLOCK)
            open_ = np.flatnonzero(rest)
            if not len(open_):
                break
            block = text.at(start[open_] + depth * _BLOCK) & _MASKS[rest[open_]]
            same = np.ones(len(pattern), dtype=bool)
            same[open_] = block == self._blocks[depth][pattern[open_]]
            start, pattern = start[same], pattern[same]
        return start, self._numbers[pattern]


class _Automaton:
    """Runs an Aho-Corasick automaton over the stretches of text that begin like its patterns."""

    def __init__(self, patterns: list[tuple[bytes, int]]) -> None:
        import ahocorasick

        self._automaton: Any = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for place, (word, _) in enumerate(patterns):
            # Latin-1 has one character for every byte.
            self._automaton.add_word(word.decode("latin-1"), place)
        self._automaton.make_automaton()
        self._numbers = np.array([number for _, number in patterns], dtype=np.int64)
        self._lengths = np.array([len(word) for word, _ in patterns], dtype=np.int64)
        reach: dict[bytes, int] = {}
        for word, _ in patterns:
            reach[word[:_BLOCK]] = max(reach.get(word[:_BLOCK], 0), len(word))
        self._heads = _Heads(list(reach))
        self._reach = np.array(list(reach.values()), dtype=np.int64)

    def find(self, text: _Blocks, places: Positions, heads: np.ndarray) -> tuple[Positions, Positions]:
        words, number = self._heads.find(heads)
        starts = places[words]
        stops = np.minimum(starts + self._reach[number], len(text.data))
        pieces = [text.data[start:stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
        joined = b"\0".join(pieces).decode("latin-1")
        flat = np.fromiter(chain.from_iterable(self._automaton.iter(joined)), dtype=np.int64)
        last, pattern = flat[::2], flat[1::2]
        begins = last + 1 - self._lengths[pattern]
        # What begins within a piece begins a piece of its own, too.
        piece_starts = np.cumsum(np.append(0, stops - starts + 1))[:-1]
        piece = np.searchsorted(piece_starts, begins, side="right") - 1
        first = piece_starts[piece] == begins
        return starts[piece[first]], self._numbers[pattern[first]]


def expand(first: Positions, groups: Positions) -> tuple[Positions, Positions]:
    """All members of groups: pairs of a place in `groups` and a member of the group there.

    Args:
        first: where each group begins, ascending, and at its end where the last one ends; group g has the members
            from `first[g]` to `first[g + 1]`.
        groups: the groups to expand, in any order, also more than once.
    """
    sizes = first[groups + 1] - first[groups]
    places = np.repeat(np.arange(len(groups)), sizes)
    before = np.repeat(np.cumsum(sizes) - sizes, sizes)
    return places, first[groups][places] + np.arange(len(places)) - before


def _integer(block: bytes) -> int:
    return int.from_bytes(block, "little")


def _patterns(names: Sequence[bytes]) -> dict[bytes, list[tuple[int, int]]]:
    """Every name, and every name without one of its hyphens: whose it is, and where the hyphen was (-1: nowhere)."""
    patterns: dict[bytes, list[tuple[int, int]]] = {}
    for number, name in enumerate(names):
        patterns.setdefault(name, []).append((number, -1))
        for place in range(1, len(name) - 1):
            if name[place] == ord("-"):
                patterns.setdefault(name[:place] + name[place + 1 :], []).append((number, place))
    return patterns


def _apart(starts: Positions, ends: Positions) -> Bool[np.ndarray, " places"]:
    """Which of the spans, sorted by their different starts, are kept from left to right so that none overlaps."""
    kept = np.ones(len(starts), dtype=bool)
    # Only where a span begins before an earlier one ends is there anything to decide.
    clash = np.flatnonzero(starts[1:] < np.maximum.accumulate(ends)[:-1]) + 1
    end, previous = 0, -1
    for place in clash.tolist():
        if place != previous + 1:
            end = int(ends[place - 1])
        kept[place] = starts[place] >= end
        if kept[place]:
            end = int(ends[place])
        previous = place
    return kept
