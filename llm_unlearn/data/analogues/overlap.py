"""What two texts have in common, in tokens."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def longest_common_run(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest run of tokens that stands in `a` and in `b` without a gap.

    Dynamic programming, ``run[i, j] = run[i - 1, j - 1] + 1 if a[i] == b[j] else 0``, of which one row is kept:
    ``len(a) * len(b)`` steps in numpy, memory for one of the texts.
    """
    if len(a) > len(b):
        a, b = b, a
    tokens = np.asarray(b, dtype=np.int64)
    # One place more, at the front, for what the first token of b continues: nothing.
    run = np.zeros(len(b) + 1, dtype=np.int32)
    longest = 0
    for token in a:
        run[1:] = (run[:-1] + 1) * (tokens == token)
        longest = max(longest, int(run.max()))
    return longest


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of `n` tokens, in order and with repetition; none where there are fewer than `n` tokens."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def shared_ngrams(a: Sequence[int], b: Sequence[int], n: int = 10) -> float | None:
    """Share of the n-grams of `a`, counted with repetition, that occur in `b`; None where `a` has no n-gram.

    `n` is 10 as in EL_10, the extraction measure by which ICU stops.
    """
    own = ngrams(a, n)
    if not own:
        return None
    others = set(ngrams(b, n))
    return sum(gram in others for gram in own) / len(own)
