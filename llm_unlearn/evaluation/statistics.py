"""How far a number can be trusted: bootstrap by weights.

A resample draws items with replacement, that is, it gives every item a whole number as its weight. All resamples of a
set are one matrix of weights, its first row ones: the data themselves. Whatever is linear or a rank statistic is then
computed for all of them at once, and columns of the same rows are resampled together.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Estimate = float | Float[np.ndarray, " r"]
"""A value, or one per resample, the value itself first."""

RESAMPLES = 1000
"""Fixes the bounds of an interval to about a tenth of its width."""

_FEWEST_CLUSTERS = 10
# 1000 resamples of 20,000 items take 160 MB; larger sets need fewer resamples, as their intervals are narrow.
_LARGEST_MATRIX = 2 * 10**7


def resampling_weights(
    n: int, clusters: Sequence[object] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "1_plus_resamples n"]:
    """Weights of `n` items in the data (first row, ones) and in each resample (whole numbers).

    Args:
        n: number of items.
        clusters: which cluster each item belongs to, such as its author; whole clusters are then drawn, because their
            items are alike. With fewer than 10 clusters items are drawn, as ten draws say nothing about spread.
        resamples: number of resamples; fewer for more than 20,000 items.
        seed: seed of the draws, the same everywhere, so that equal data have equal intervals.
    """
    resamples = min(resamples, max(100, _LARGEST_MATRIX // max(n, 1)))
    names = list(dict.fromkeys(clusters or ()))
    if len(names) >= _FEWEST_CLUSTERS:
        number = {name: i for i, name in enumerate(names)}
        of_item = np.array([number[cluster] for cluster in clusters])
    else:
        names, of_item = range(n), np.arange(n)
    draws = np.random.default_rng(seed).integers(0, len(names), size=(resamples, len(names)))
    counts = np.zeros((resamples, len(names)))
    np.add.at(counts, (np.arange(resamples)[:, None], draws), 1)
    return np.concatenate([np.ones((1, n)), counts[:, of_item]])


def weighted_mean(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
    """``sum_i w_i x_i / sum_i w_i`` under each row of weights; NaN where all weight lies on nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ values) / weights.sum(axis=1)


def interval(estimates: Float[np.ndarray, " r"], level: float = 0.95) -> tuple[float, float] | None:
    """The middle `level` of the estimates from resamples (all but the first); None where they are not numbers."""
    resampled = estimates[1:]
    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) < 2:
        return None
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
