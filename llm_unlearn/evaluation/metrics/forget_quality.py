"""Forget quality: can the truth ratios be told from those of a model that never saw the forget set?"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from llm_unlearn.evaluation.statistics import Estimate

_LARGEST_EXACT = 10_000
"""Items up to which scipy counts paths instead of taking the limit (its method "auto")."""


@dataclass(frozen=True)
class KSResult:
    """Outcome of a two-sample Kolmogorov-Smirnov test.

    Attributes:
        statistic: D, the largest distance between the two distribution functions, in [0, 1]; 0 is the target.
        p: probability of a distance at least as large if both samples had the same distribution, in [0, 1].
        log10_p: its decimal logarithm, finite also where `p` is too small for a float and reads 0.
        n: number of values in the first sample.
        m: number of values in the second.
        method: ``exact``, or ``asymp`` above 10,000 values or where the exact count fails.
    """

    statistic: float
    p: float
    log10_p: float
    n: int
    m: int
    method: Literal["exact", "asymp"]


def forget_quality(unlearned_ratios: Float[np.ndarray, " n"], retain_ratios: Float[np.ndarray, " m"]) -> KSResult:
    """``FQ = p``, of the two-sided Kolmogorov-Smirnov test between truth ratios of two models on the forget set.

    Higher is better, in [0, 1]; target 1, usually read as "at least 0.05". The exact p depends on D, n and m only, so
    values of different n cannot be compared: 400 rows against 400 can go down to 1e-239, 40 against 40 only to 2e-23,
    and there a moderately wrong model passes. Always show D, log10 p, n and m with it. FQ is a parity number: gibberish
    can score well, and high FQ has been reached by models that leak more than before.

    Source: TOFU (arXiv:2401.06121), section 2.2. Variants differ in the ratios, not here: see
    `metrics.truth_ratio`; `tofu_code` takes the first 300 rows.

    Args:
        unlearned_ratios: raw R per item of the model under test.
        retain_ratios: raw R per item of the retain model.

    Returns:
        Distance, p and how p was found; distance and p are NaN where a ratio is NaN, as those of a collapsed model are.

    Raises:
        ValueError: if a sample is empty.
    """
    n, m = len(unlearned_ratios), len(retain_ratios)
    if not n or not m:
        raise ValueError(f"Forget quality compares two samples of truth ratios, but they hold {n} and {m} values.")
    # A second that reading a report should not pay.
    from scipy.stats import ks_2samp

    method = "exact" if max(n, m) <= _LARGEST_EXACT else "asymp"
    with warnings.catch_warnings():
        # For some (D, n, m) scipy's count overflows: it warns and takes the limit. Nothing is wrong with the data.
        warnings.filterwarnings("error", message=".*Switching to", category=RuntimeWarning)
        try:
            found = ks_2samp(unlearned_ratios, retain_ratios, method=method)
        except RuntimeWarning:
            method = "asymp"
            found = ks_2samp(unlearned_ratios, retain_ratios, method=method)
    statistic, p = float(found.statistic), float(found.pvalue)
    log10_p = math.log10(p) if p else log_exact_p(statistic, n, m) / math.log(10)
    return KSResult(statistic, p, log10_p, n, m, method)


def ks_statistic(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    a_weights: Float[np.ndarray, "r n"] | None = None,
    b_weights: Float[np.ndarray, "r m"] | None = None,
) -> Estimate:
    """``D = sup_x |F_a(x) - F_b(x)|``, with F the shares of values up to x, in [0, 1]; NaN where a value is NaN.

    The distance of `forget_quality` without its p. Costs O((n+m) log(n+m)), and O(r (n+m)) under r rows of weights.

    Args:
        a: one sample.
        b: the other.
        a_weights: how often each value counts, per resample (`statistics.resampling_weights`); the result then has one
            value per row. Unset, each counts once.
        b_weights: likewise.
    """
    values = np.concatenate([a, b])
    if np.isnan(values).any():
        return math.nan
    single = a_weights is None or b_weights is None
    weights = [np.ones((1, len(a))), np.ones((1, len(b)))] if single else [a_weights, b_weights]
    shares = [w / w.sum(axis=1, keepdims=True) for w in weights]
    order = np.argsort(values, kind="stable")
    gaps = np.abs(np.cumsum(np.concatenate([shares[0], -shares[1]], axis=1)[:, order], axis=1))
    # Only behind the last of equal values have both functions taken their step.
    last = np.append(np.diff(values[order]) != 0, True)
    largest = gaps[:, last].max(axis=1)
    return float(largest[0]) if single else largest


def log_exact_p(statistic: float, n: int, m: int) -> float:
    """Natural logarithm of the exact two-sided p of the distance `statistic`, where p itself is too small for a float.

    Under the null hypothesis all orders of the n + m values are equally probable. An order is a path from (0, 0) to
    (n, m) in unit steps, and its distance reaches D where ``|i/n - j/m| >= D``. Each such path is counted once, at the
    first point that does; all counts are logarithms and all terms positive, so that nothing cancels.
    Hodges, Arkiv för Matematik 3 (1958). Costs O(n m) time and O(m) memory.
    """
    bound = round(statistic * n * m)
    if bound <= 0:
        return 0.0
    log_factorial = np.cumsum(np.log(np.maximum(np.arange(n + m + 1), 1)))

    def paths(right, up):
        return log_factorial[right + up] - log_factorial[right] - log_factorial[up]

    # inside[j]: paths to (i, j) that have met no point at the bound.
    inside = np.full(m + 1, -np.inf)
    inside[0] = 0.0
    total = -np.inf
    for i in range(n + 1):
        # Inside means |i m - j n| < bound.
        low = max(0, (i * m - bound) // n + 1)
        high = min(m, -((-i * m - bound) // n) - 1)
        # From (i-1, j) with j below the window the path steps out of it.
        left = inside[:low]
        if i and low:
            rows = np.arange(low)
            total = np.logaddexp(total, np.logaddexp.reduce(left + paths(n - i, m - rows)))
        inside[:low] = -np.inf
        inside[low : high + 1] = np.logaddexp.accumulate(inside[low : high + 1])
        # From (i, high) it steps out above.
        if low <= high < m:
            total = np.logaddexp(total, inside[high] + paths(n - i, m - high - 1))
    return float(total - paths(n, m))
