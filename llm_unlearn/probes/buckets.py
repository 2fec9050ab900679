"""Facts put together by count: at quantiles, by powers of ten, or at given edges.

Facts of equal count are never parted, and those of count 0 are always a bucket of their own: a fact that was never
counted is not a rare one, as its names may be written otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

ZERO = "zero"
"""Name of the bucket of count 0."""

QUANTILES = {"low": 0.33, "medium": 0.67, "high": 1.0}
"""Up to which quantile of the counts above 0 a bucket reaches; those of arXiv:2504.05058."""


@dataclass(frozen=True)
class Bucket:
    """Facts of similar count.

    Attributes:
        name: "zero", "low", "medium" or "high", or its range.
        ids: of its facts, in their order.
        lowest, highest: smallest and largest count in it.
    """

    name: str
    ids: tuple[str, ...]
    lowest: float
    highest: float


def make_buckets(
    counts: Mapping[str, float],
    rule: Literal["quantiles", "decades"] | Sequence[float] = "quantiles",
    *,
    equal_size: bool = False,
    seed: int = 0,
) -> tuple[Bucket, ...]:
    """Sort facts into buckets, from the lowest counts to the highest.

    Args:
        counts: by fact id, 0 or more.
        rule: "quantiles", those of `QUANTILES` over counts above 0; "decades", ``[10^k, 10^(k+1))`` as far as there are
            counts; or edges, ascending and above 0, of which each begins a bucket.
        equal_size: whether buckets are cut to the size of the smallest, at random; that of count 0 stays as it is.
        seed: of that draw.

    Returns:
        Buckets without an empty one. That of count 0 is there only if some count is 0.

    Raises:
        ValueError: there is no fact, all counts are the same, or quantiles or edges leave a bucket empty.
    """
    values = np.array(list(counts.values()), dtype=float)
    if not len(values):
        raise ValueError("There is no fact to be forgotten: give facts whose `role` is 'forget'.")
    if np.ptp(values) == 0:
        raise ValueError(
            f"All {len(values)} facts to be forgotten have the same count, {_shown(values[0])}: give facts of "
            "different counts, or counts from another source (`--counts`)."
        )
    names = _names(values, rule)
    of_name = {name: [fact for fact, own in zip(counts, names, strict=True) if own == name] for name in names}
    ordered = sorted(of_name, key=lambda name: min(counts[fact] for fact in of_name[name]))
    _require_filled(ordered, counts, rule)
    buckets = tuple(_bucket(name, of_name[name], counts) for name in ordered)
    return _cut(buckets, counts, seed) if equal_size else buckets


def _names(values: np.ndarray, rule: str | Sequence[float]) -> list[str]:
    if rule == "decades":
        return [ZERO if value == 0 else _decade(value) for value in values.tolist()]
    if rule == "quantiles":
        above = values[values > 0]
        bounds = np.quantile(above, list(QUANTILES.values()))
        return [ZERO if value == 0 else list(QUANTILES)[np.searchsorted(bounds, value)] for value in values]
    ranges = _ranges(rule)
    return [ZERO if value == 0 else ranges[np.searchsorted(rule, value, side="right")] for value in values]


def _decade(value: float) -> str:
    # The power may be off by one next to a power of ten, where the logarithm is rounded.
    power = math.floor(math.log10(value))
    power += (value >= 10.0 ** (power + 1)) - (value < 10.0**power)
    return f"{_shown(10.0**power)} to {_shown(10.0 ** (power + 1))}"


def _ranges(edges: Sequence[float]) -> list[str]:
    between = [f"{_shown(low)} to {_shown(high)}" for low, high in zip(edges, edges[1:], strict=False)]
    return [f"below {_shown(edges[0])}", *between, f"{_shown(edges[-1])} and more"]


def _shown(count: float) -> str:
    return f"{count:.0f}" if float(count).is_integer() else f"{count}"


def _require_filled(present: Sequence[str], counts: Mapping[str, float], rule: str | Sequence[float]) -> None:
    wanted = list(QUANTILES) if rule == "quantiles" else [] if rule == "decades" else _ranges(rule)
    empty = [name for name in wanted if name not in present]
    if not empty:
        return
    values = sorted(value for value in counts.values() if value > 0)
    common = sorted((-len(list(group)), value) for value, group in groupby(values))[:3]
    shown = ", ".join(f"{-times} facts with {_shown(value)}" for times, value in common)
    distinct = sorted(set(values))
    hint = f", such as {', '.join(f'{_shown(edge)}' for edge in distinct[1:3])}" if len(distinct) > 1 else ""
    raise ValueError(
        f"The bucket {empty[0]!r} is empty: of {len(counts)} facts to be forgotten, {len(values)} have a count above 0 "
        f"(most often {shown or 'none'}), and equal counts are never parted. Give edges between the counts{hint}, "
        "or 'decades'."
    )


def _bucket(name: str, ids: Sequence[str], counts: Mapping[str, float]) -> Bucket:
    own = [counts[fact] for fact in ids]
    return Bucket(name, tuple(ids), min(own), max(own))


def _cut(buckets: Sequence[Bucket], counts: Mapping[str, float], seed: int) -> tuple[Bucket, ...]:
    size = min(len(bucket.ids) for bucket in buckets if bucket.name != ZERO)
    random = np.random.default_rng(seed)
    cut = []
    for bucket in buckets:
        if bucket.name == ZERO:
            cut.append(bucket)
            continue
        kept = np.sort(random.choice(len(bucket.ids), size, replace=False))
        cut.append(_bucket(bucket.name, [bucket.ids[i] for i in kept], counts))
    return tuple(cut)
