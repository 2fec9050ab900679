"""How far a mean over items can be trusted."""

import numpy as np
from jaxtyping import Float


def bootstrap_interval(
    values: Float[np.ndarray, " n"], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean: items are drawn with replacement, the middle `level` of means is kept.

    Args:
        values: one value per item.
        level: share of the resampled means inside the interval.
        resamples: number of resamples. 1000 fixes the bounds to about a tenth of the interval's width.
        seed: seed of the draws, the same for every metric, so that equal data have equal intervals.

    Returns:
        Lower and upper bound in the unit of the values; None for fewer than two items, which say nothing about spread.
    """
    if len(values) < 2:
        return None
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
