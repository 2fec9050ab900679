"""Is a code more frequent in one set of texts than in another? For all codes at once, as functions of counts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import chdtrc
from scipy.stats import false_discovery_control, hypergeom

Counts = Int[np.ndarray, "..."]
Values = Float[np.ndarray, "..."]

_SMALLEST_EXPECTED = 5
"""Below this an expected count is too small for the chi-squared distribution (Cochran's rule)."""

_TIE = 1 + 1e-7
"""Probabilities that differ by less are equal, as in R's `fisher.test`."""


def enrichment(n_target: Counts, N_target: int, n_control: Counts, N_control: int) -> Values:
    """``log2(f_T / f_C)`` with ``f = (n + 1/2) / (N + 1)``, finite for every count; the halves are ours."""
    return np.log2((n_target + 0.5) / (N_target + 1)) - np.log2((n_control + 0.5) / (N_control + 1))


def independence_test(
    n_target: Counts, N_target: int, n_control: Counts, N_control: int, *, exact: bool
) -> tuple[Values, Values]:
    """Pearson's chi-squared, without continuity correction, and p for each table of n and N - n; any shape.

    Args:
        n_target, n_control: how many of the target and of the control have the code.
        N_target, N_control: how many there are.
        exact: whether p is that of Fisher's two-sided test where an expected count is below 5.

    Returns:
        The statistic, 0 and p = 1 for a code that none or all have, and p.
    """
    has = (n_target + n_control).astype(float)
    N = float(N_target + N_control)
    uneven = n_target * float(N_control) - n_control * float(N_target)
    margins = has * (N - has) * N_target * N_control
    chi2 = np.divide(N * uneven**2, margins, out=np.zeros(has.shape), where=margins > 0)
    p = chdtrc(1, chi2)
    if exact:
        few = (np.minimum(has, N - has) * min(N_target, N_control) < _SMALLEST_EXPECTED * N) & (margins > 0)
        p[few] = fisher_exact(n_target[few], N_target, n_control[few], N_control)
    return chi2, p


def fisher_exact(
    n_target: Int[np.ndarray, " n"], N_target: int, n_control: Int[np.ndarray, " n"], N_control: int
) -> Float[np.ndarray, " n"]:
    """Two-sided p: the probability, at the same margins, of all tables that are no more probable than this one."""
    has = n_target + n_control
    p = np.ones(len(has))
    # One distribution serves all tables with the same margins, and rare codes share a few.
    for total in np.unique(has):
        first = max(0, total - N_control)
        probabilities = hypergeom.pmf(np.arange(first, min(total, N_target) + 1), N_target + N_control, total, N_target)
        ascending = np.sort(probabilities)
        last = np.searchsorted(ascending, probabilities * _TIE, side="right")
        mine = has == total
        p[mine] = ascending.cumsum()[last - 1][n_target[mine] - first]
    return np.minimum(p, 1)


def false_discovery_rate(
    p: Float[np.ndarray, " codes"], occurs: Bool[np.ndarray, " codes"]
) -> Float[np.ndarray, " codes"]:
    """q of Benjamini and Hochberg: ``min over j >= i of p_(j) m / j``, monotone in p; 1 for codes that do not occur.

    The m tests are those of codes that occur in either set. The others cannot be chosen, and with them q would depend
    on how many dead codes the codebook has. Which occur is decided by the sum of both counts, which says nothing about
    how they are divided.
    """
    q = np.ones(len(p))
    q[occurs] = false_discovery_control(p[occurs])
    return q
