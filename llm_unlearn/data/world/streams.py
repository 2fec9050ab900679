"""Random numbers that depend on a purpose, not on the order of calls.

Every drawing names what it is for (`Stream(seed, "full", 3, "genre")`), so a new attribute or more authors leave all
other drawings as they were. Only `random.Random.random` is used underneath: its sequence is the one that Python
promises to keep between versions, and bundled files are compared bit for bit.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def digest(text: str) -> int:
    """A number that depends on the text alone; unlike `hash` it is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Stream:
    """A seeded source of drawings for one purpose."""

    def __init__(self, *purpose: object):
        self._random = random.Random(digest("/".join(map(str, purpose))))

    def below(self, n: int) -> int:
        """A whole number from 0 to n - 1."""
        return int(self._random.random() * n)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        items = list(options)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return items
