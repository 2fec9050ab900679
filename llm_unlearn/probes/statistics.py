"""How forgetting goes with the count: correlations, slope and gap, each with what it can be trusted for.

All intervals are bootstrap intervals over facts (`evaluation.statistics`): resamples are whole-number weights, under
which ranks, covariances and means are computed for all resamples at once. Facts about one subject are drawn together,
since they are learned and forgotten together; where every subject has one fact, that is a draw of facts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from llm_unlearn.evaluation.statistics import interval, resampling_weights, weighted_mean
from llm_unlearn.probes.records import Association, Estimate

FEWEST_FOR_P = 20
"""Facts, or subjects where facts share them, below which no p-value is given; by specification."""

FEWEST_CLUSTERS = 10
"""Subjects below which facts are drawn one by one; as in `resampling_weights`."""

_FEWEST_PAIRS = 3
# What is left of a variance below this share is rounding.
_NOTHING = 1e-12
# Numbers of one matrix of resamples or permutations that are held at a time: 16 MB.
_CHUNK_ENTRIES = 2**21

Values = Float[np.ndarray, " n"]
Weights = Float[np.ndarray, "r n"]


class Resampling:
    """The bootstrap of one set of facts: weights drawn once, so that all numbers of a report go together.

    Args:
        subjects: of each fact; whole subjects are drawn. With fewer than `FEWEST_CLUSTERS` facts are drawn.
        resamples: number of resamples.
        permutations: number of permutations behind a p-value.
        seed: of both.
    """

    def __init__(self, subjects: Sequence[str], *, resamples: int = 1000, permutations: int = 9999, seed: int = 0):
        self.subjects = list(subjects)
        self.permutations = permutations
        self.seed = seed
        self.weights = resampling_weights(len(self.subjects), self.subjects, resamples=resamples, seed=seed)

    def mean(self, values: Values) -> Estimate:
        """The mean, with its interval; not measured without values."""
        if not len(values):
            return Estimate(None, note="not measured: no known facts")
        if len(values) == 1:
            return Estimate(float(values[0]), n=1)
        return _estimate(weighted_mean(values, self.weights), len(values))

    def associate(
        self, x: Values, forgetting: Values, confidence: Values, length: Values, low: Values, high: Values
    ) -> Association:
        """All that is said about count and forgetting.

        Args:
            x: ``log10(1 + count)``, ``(n,)``.
            forgetting: F, ``(n,)``.
            confidence: base confidence, ``(n,)``.
            length: answer length, ``(n,)``.
            low, high: 1 for facts of the lowest and of the highest bucket, else 0, ``(n,)``.
        """
        return Association(
            spearman=self.spearman(x, forgetting),
            kendall=self.kendall(x, forgetting),
            partial=self.partial(x, forgetting, [confidence, length]),
            slope=self.slope(x, forgetting),
            gap=self.gap(forgetting, low, high),
        )

    def spearman(self, x: Values, y: Values) -> Estimate:
        """Spearman's rho with a bootstrap interval and a permutation p, in [-1, 1]."""
        if reason := degenerate(x, y):
            return Estimate(None, n=len(x), note=reason)
        return _estimate(spearman(x, y, self.weights), len(x), *self._permutation_p(x, y))

    def kendall(self, x: Values, y: Values) -> Estimate:
        """Kendall's tau-b, in [-1, 1]; its interval and p are Spearman's business, on the same pairs."""
        if reason := degenerate(x, y):
            return Estimate(None, n=len(x), note=reason)
        return Estimate(float(stats.kendalltau(x, y).statistic), n=len(x))

    def partial(self, x: Values, y: Values, given: Sequence[Values]) -> Estimate:
        """Spearman's rho of x and y given others: of what their ranks hold beyond a linear fit on the others' ranks."""
        if reason := degenerate(x, y):
            return Estimate(None, n=len(x), note=reason)
        if len(x) < len(given) + _FEWEST_PAIRS:
            return Estimate(None, n=len(x), note=f"not measured: {len(x)} known facts for {len(given)} controls")
        estimates = partial_spearman(x, y, given, self.weights)
        if not np.isfinite(estimates[0]):
            return Estimate(None, n=len(x), note="not measured: the controls already tell count or forgetting")
        return _estimate(estimates, len(x))

    def slope(self, x: Values, y: Values) -> Estimate:
        """``cov(x, y) / var(x)``: with x a decimal logarithm, the change of y per tenfold count."""
        if reason := _too_few(x) or _constant(x):
            return Estimate(None, n=len(x), note=reason)
        return _estimate(slope(x - x.mean(), y, self.weights), len(x))

    def gap(self, y: Values, low: Values, high: Values) -> Estimate:
        """Mean of y where `high` is 1, less its mean where `low` is; resampled together."""
        n = int(low.sum() + high.sum())
        if not low.any() or not high.any():
            return Estimate(None, n=n, note="not measured: no known facts in the lowest or in the highest bucket")
        return _estimate(weighted_mean(y, self.weights * high) - weighted_mean(y, self.weights * low), n)

    def _permutation_p(self, x: Values, y: Values) -> tuple[float | None, str | None]:
        """Two-sided p of rho: counts dealt out anew, to whole subjects where all facts of a subject share a count."""
        number = {subject: i for i, subject in enumerate(dict.fromkeys(self.subjects))}
        of_fact = np.array([number[subject] for subject in self.subjects])
        first = np.unique(of_fact, return_index=True)[1]
        if not np.array_equal(x[first][of_fact], x):
            of_fact = first = np.arange(len(x))
        if len(first) < FEWEST_FOR_P:
            kind = "facts" if len(first) == len(x) else "subjects, which share a count among their facts"
            return None, f"no p-value: {len(first)} {kind}; {FEWEST_FOR_P} are needed"
        y_ranks = _standardised(stats.rankdata(y)[None], np.ones((1, len(y))))[0]
        observed = abs(spearman(x, y, np.ones((1, len(x))))[0])
        random = np.random.default_rng(self.seed)
        extreme, left = 0, self.permutations
        while left:
            size = min(left, max(1, _CHUNK_ENTRIES // len(x)))
            dealt = random.permuted(np.tile(x[first], (size, 1)), axis=1)[:, of_fact]
            ranks = stats.rankdata(dealt, axis=1)
            rhos = _standardised(ranks, np.ones_like(ranks)) @ y_ranks / len(x)
            # As extreme as the data, whatever the rounding.
            extreme += int((np.abs(rhos) >= observed - 1e-9).sum())
            left -= size
        return (1 + extreme) / (1 + self.permutations), None


def spearman(x: Values, y: Values, weights: Weights) -> Float[np.ndarray, " r"]:
    """Pearson's correlation of mid-ranks under each row of weights; NaN where either is constant."""

    def rho(some: Weights) -> Float[np.ndarray, " s"]:
        one, other = (_standardised(weighted_ranks(values, some), some) for values in (x, y))
        return (some * one * other).sum(axis=1) / some.sum(axis=1)

    return _in_chunks(rho, weights)


def partial_spearman(x: Values, y: Values, given: Sequence[Values], weights: Weights) -> Float[np.ndarray, " r"]:
    """``S_xy / sqrt(S_xx S_yy)`` with ``S = A - B C^+ B'`` of the correlations of ranks, under each row of weights.

    A is the block of x and y, C that of what is given, B theirs with each other. Constant or repeated controls are
    harmless. NaN where what is given leaves nothing of x or y.
    """

    def rho(some: Weights) -> Float[np.ndarray, " s"]:
        ranks = np.stack([_standardised(weighted_ranks(values, some), some) for values in (x, y, *given)])
        # A constant control explains nothing.
        ranks[2:] = np.nan_to_num(ranks[2:])
        all_pairs = np.einsum("irn,jrn,rn->rij", ranks, ranks, some, optimize=True) / some.sum(axis=1)[:, None, None]
        a, b, c = all_pairs[:, :2, :2], all_pairs[:, :2, 2:], all_pairs[:, 2:, 2:]
        rest = a - b @ np.linalg.pinv(c, rcond=_NOTHING, hermitian=True) @ b.transpose(0, 2, 1)
        left = [np.where(rest[:, i, i] > _NOTHING, rest[:, i, i], np.nan) for i in range(2)]
        return rest[:, 0, 1] / np.sqrt(left[0] * left[1])

    return _in_chunks(rho, weights)


def slope(x: Values, y: Values, weights: Weights) -> Float[np.ndarray, " r"]:
    """``cov(x, y) / var(x)`` under each row of weights; NaN where x is constant."""
    mean_x, mean_y = weighted_mean(x, weights), weighted_mean(y, weights)
    variance = weighted_mean(x**2, weights) - mean_x**2
    covariance = weighted_mean(x * y, weights) - mean_x * mean_y
    return covariance / np.where(variance > _NOTHING, variance, np.nan)


def weighted_ranks(values: Values, weights: Weights) -> Weights:
    """Mid-ranks in the sample in which each item occurs as often as its weight says, ``(r, n)``."""
    _, of_item = np.unique(values, return_inverse=True)
    order = np.argsort(of_item, kind="stable")
    starts = np.flatnonzero(np.diff(of_item[order], prepend=-1))
    of_value = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = of_value.cumsum(axis=1) - (of_value - 1) / 2
    return middle[:, of_item]


def line_over(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """Slope of y on x by least squares, with Student's interval of ``n - 2`` degrees of freedom; from 3 sizes on."""
    if len(set(x)) < _FEWEST_PAIRS:
        return Estimate(None, n=len(x), note=f"not measured: {_FEWEST_PAIRS} different sizes are needed")
    fit = stats.linregress(x, y)
    # Of equal values SciPy's error is 0 / 0: the line is level and fits them exactly.
    half = stats.t.ppf(0.975, len(x) - 2) * fit.stderr if np.ptp(y) else 0.0
    return Estimate(float(fit.slope), (float(fit.slope - half), float(fit.slope + half)), len(x))


def _estimate(estimates: Float[np.ndarray, " r"], n: int, p: float | None = None, note: str | None = None) -> Estimate:
    return Estimate(float(estimates[0]), interval(estimates), n, p, note)


def degenerate(x: Values, y: Values) -> str | None:
    """Why count and forgetting cannot be correlated: too few facts, or one of them constant; None if they can."""
    reason = _too_few(x) or _constant(x)
    if reason is None and np.ptp(y) == 0:
        return "not measured: all known facts are forgotten to the same degree"
    return reason


def _too_few(x: Values) -> str | None:
    return f"not measured: {len(x)} known facts, {_FEWEST_PAIRS} are needed" if len(x) < _FEWEST_PAIRS else None


def _constant(x: Values) -> str | None:
    return "not measured: all known facts have the same count" if np.ptp(x) == 0 else None


def _standardised(values: Weights, weights: Weights) -> Weights:
    total = weights.sum(axis=1, keepdims=True)
    centred = values - (values * weights).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((centred**2 * weights).sum(axis=1, keepdims=True) / total)
    # Ranks that differ have a deviation of tenths; less is rounding.
    return centred / np.where(scale > 1e-6, scale, np.nan)


def _in_chunks(function: Callable[[Weights], Float[np.ndarray, " s"]], weights: Weights) -> Float[np.ndarray, " r"]:
    rows = max(1, _CHUNK_ENTRIES // max(1, weights.shape[1]))
    return np.concatenate([function(weights[at : at + rows]) for at in range(0, len(weights), rows)])
