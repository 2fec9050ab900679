"""Forget weights from counts: pure functions of numbers."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

LOWEST, HIGHEST = 0.25, 4.0
"""Bounds of a weight."""


def log_counts(counts: Sequence[float]) -> Float[np.ndarray, " n"]:
    """``x = log10(1 + count)``, the variable of all statistics on frequency.

    Raises:
        ValueError: a count is negative or no finite number.
    """
    values = np.asarray(counts, dtype=float)
    bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
    if len(bad):
        raise ValueError(f"The count of forget row {bad[0]} is {values[bad[0]]}: give a number from 0 up.")
    return np.log10(1 + values)


def frequency_weights(x: Float[np.ndarray, " n"], kappa: float) -> Float[np.ndarray, " n"]:
    """``w_i = clip(c (1 + kappa z_i), 0.25, 4)`` with ``z = (x - mean x) / std x``; their mean is 1.

    The factor c is the one at which the mean is 1 *after* the clip; scaling first and clipping then would leave the
    total pull of the forget set to chance. Without a clip c is 1, as z has mean 0.

    Args:
        x: log counts, see `log_counts`.
        kappa: how far weights part, per standard deviation of x; 0 gives ones.

    Raises:
        ValueError: all counts are the same, or so many rows lie at the lower bound that no c gives mean 1.
    """
    spread = x.std()
    if not spread > 1e-12:
        raise ValueError(
            f"All {len(x)} forget rows have the same count ({10 ** x[0] - 1:g}), so that none can weigh more than "
            "another: give counts that differ (`--freq_counts`), or drop `--freq_weight`."
        )
    raw = 1 + kappa * (x - x.mean()) / spread

    def mean_at(c: float) -> float:
        return float(np.clip(c * raw, LOWEST, HIGHEST).mean())

    # The mean rises with c from 0.25 to its largest value, where each row is at one of the bounds.
    top = HIGHEST / raw[raw > 0].min()
    if mean_at(top) < 1:
        raise ValueError(
            f"`freq_weight` {kappa:g} puts {np.mean(raw <= 0):.0%} of the forget rows at the lowest weight "
            f"{LOWEST:g}, and the others cannot make up for it within {HIGHEST:g}: give a value nearer to 0."
        )
    low, high = 0.0, top
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < 1 else (low, middle)
    return np.clip(high * raw, LOWEST, HIGHEST)
