"""How forgetting goes with the count: correlations, slope and gap, each with what it can be trusted for.

All intervals are bootstrap intervals over facts (`evaluation.statistics`): resamples are whole-number weights, under
which ranks, covariances and means are computed for all resamples at once. Facts of one cluster, which is their subject
where a fact names no other, are drawn together, since they are learned and forgotten together; where every cluster has
one fact, that is a draw of facts. Intervals are expanded for few draws (`expanded_interval`), and a resample in which
count or forgetting is constant shows no tendency (`tendency`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from llm_unlearn.evaluation.statistics import interval, resampling_weights, weighted_mean
from llm_unlearn.probes.records import Association, Estimate

FEWEST_FOR_P = 20
"""Facts, or clusters where facts share them, below which no p-value is given; by specification."""

FEWEST_CLUSTERS = 10
"""Clusters below which facts are drawn one by one; as in `resampling_weights`."""

_FEWEST_PAIRS = 3
# What is left of a variance below this share is rounding.
_NOTHING = 1e-12
# Numbers of one matrix of resamples or permutations that are held at a time: 16 MB.
_CHUNK_ENTRIES = 2**21

Values = Float[np.ndarray, " n"]
Weights = Float[np.ndarray, "r n"]
Resampled = Float[np.ndarray, " r"]


class Resampling:
    """The bootstrap of one set of facts: weights drawn once, so that all numbers of a report go together.

    Args:
        clusters: of each fact; whole clusters are drawn. With fewer than `FEWEST_CLUSTERS` facts are drawn.
        resamples: number of resamples.
        permutations: number of permutations behind a p-value.
        seed: of both.
    """

    def __init__(self, clusters: Sequence[str], *, resamples: int = 1000, permutations: int = 9999, seed: int = 0):
        self.clusters = list(clusters)
        self.permutations = permutations
        self.seed = seed
        self.weights = resampling_weights(len(self.clusters), self.clusters, resamples=resamples, seed=seed)

    def mean(self, values: Values) -> Estimate:
        """The mean, with its interval; not measured without values."""
        if not len(values):
            return Estimate(None, note="not measured: no known facts")
        if len(values) == 1:
            return Estimate(float(values[0]), n=1)
        return self._estimate(weighted_mean(values, self.weights), len(values))

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
        """Spearman's rho with a bootstrap interval and a permutation p (`permutation_p`), in [-1, 1]."""
        if reason := degenerate(x, y):
            return Estimate(None, n=len(x), note=reason)
        return self._estimate(tendency(spearman(x, y, self.weights)), len(x), *self.permutation_p(x, y))

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
        return self._estimate(tendency(estimates), len(x))

    def slope(self, x: Values, y: Values) -> Estimate:
        """``cov(x, y) / var(x)``: with x a decimal logarithm, the change of y per tenfold count."""
        if reason := _too_few(x) or _constant(x):
            return Estimate(None, n=len(x), note=reason)
        return self._estimate(tendency(slope(x - x.mean(), y, self.weights)), len(x))

    def gap(self, y: Values, low: Values, high: Values) -> Estimate:
        """Mean of y where `high` is 1, less its mean where `low` is; resampled together.

        Its interval is expanded for the bucket with fewer units, ``m``, and for two means out of all units in both,
        whose degrees of freedom are 2 less than they are.
        """
        n = int(low.sum() + high.sum())
        if not low.any() or not high.any():
            return Estimate(None, n=n, note="not measured: no known facts in the lowest or in the highest bucket")
        estimates = weighted_mean(y, self.weights * high) - weighted_mean(y, self.weights * low)
        fewest = min(self._units(low), self._units(high))
        ci95 = expanded_interval(estimates, fewest, self._units(low + high) - 2)
        note = None if ci95 else "no interval: there are too few known facts in the lowest or in the highest bucket"
        return Estimate(float(estimates[0]), ci95, n, note=note)

    def permutation_p(self, x: Values, y: Values) -> tuple[float | None, str | None]:
        """Two-sided p of rho, ``(1 + extreme) / (1 + permutations)``, or None and the reason.

        What is exchanged are the counts of whole clusters, between clusters of equally many facts and in the order of
        the facts: where clusters are drawn independently, and their counts say nothing about their forgetting, every
        such exchange is as probable as the data, however alike the facts of a cluster are. Within a cluster nothing is
        exchanged: facts of one cluster differ in kind, and counts may go with the kind. Where every cluster has one
        fact, all counts are dealt out anew.
        """
        alike = self._clusters_by_size()
        exchanged = sum(len(places) for places in alike if len(places) > 1)
        if exchanged < FEWEST_FOR_P:
            alone = len(set(self.clusters)) == len(self.clusters)
            kind = "facts" if alone else "subjects of as many known facts as another, which could exchange counts"
            return None, f"no p-value: {len(x) if alone else exchanged} {kind}; {FEWEST_FOR_P} are needed"
        y_ranks = _standardised(stats.rankdata(y)[None], np.ones((1, len(y))))[0]
        observed = abs(spearman(x, y, np.ones((1, len(x))))[0])
        random = np.random.default_rng(self.seed)
        extreme, left = 0, self.permutations
        while left:
            size = min(left, max(1, _CHUNK_ENTRIES // len(x)))
            dealt = np.tile(x, (size, 1))
            for places in alike:
                order = random.permuted(np.tile(np.arange(len(places)), (size, 1)), axis=1)
                dealt[:, places] = x[places][order]
            ranks = stats.rankdata(dealt, axis=1)
            rhos = _standardised(ranks, np.ones_like(ranks)) @ y_ranks / len(x)
            # As extreme as the data, whatever the rounding.
            extreme += int((np.abs(rhos) >= observed - 1e-9).sum())
            left -= size
        return (1 + extreme) / (1 + self.permutations), None

    def _clusters_by_size(self) -> list[Int[np.ndarray, "clusters facts"]]:
        """The places of the facts of each cluster, in an array for each number of facts."""
        places: dict[str, list[int]] = {}
        for place, name in enumerate(self.clusters):
            places.setdefault(name, []).append(place)
        by_size: dict[int, list[list[int]]] = {}
        for own in places.values():
            by_size.setdefault(len(own), []).append(own)
        return [np.array(of_size) for of_size in by_size.values()]

    def _units(self, among: Values | None = None) -> int:
        """How many units are drawn, or how many of them have facts where `among` is above 0."""
        whole = len(set(self.clusters)) >= FEWEST_CLUSTERS
        units = np.array(self.clusters) if whole else np.arange(len(self.clusters))
        return len(np.unique(units if among is None else units[among > 0]))

    def _estimate(self, estimates: Resampled, n: int, p: float | None = None, note: str | None = None) -> Estimate:
        units = self._units()
        return Estimate(float(estimates[0]), expanded_interval(estimates, units, units - 1), n, p, note)


def expanded_interval(estimates: Resampled, m: int, df: int) -> tuple[float, float] | None:
    """The 95 % percentile interval of resamples, expanded for few draws: from the quantile q to that of 1 - q.

    ``q = Phi(-sqrt(m / (m - 1)) t)``, t the .975 quantile of Student's distribution; .025 for many draws. A percentile
    interval of a mean is one with the normal quantile and the deviation over m, where Student's quantile and the
    deviation over m - 1 are due (Hesterberg, "What Teachers Should Know About the Bootstrap", The American
    Statistician 69:4, 2015, doi:10.1080/00031305.2015.1089789).

    Args:
        estimates: from the data, and then from each resample.
        m: units drawn, the fewest of a stratum where they are drawn in strata.
        df: degrees of freedom: all units, less strata.

    Returns:
        The interval; None for fewer than two units or without degrees of freedom.
    """
    if m < 2 or df < 1:
        return None
    tail = stats.norm.cdf(-np.sqrt(m / (m - 1)) * stats.t.ppf(0.975, df))
    return interval(estimates, 1 - 2 * float(tail))


def tendency(estimates: Resampled) -> Resampled:
    """Resamples with 0 where they are NaN: if count or forgetting is constant, neither goes with the other.

    To leave them out would make a finding of one fact, which is in all that remain.
    """
    return np.nan_to_num(estimates)


def spearman(x: Values, y: Values, weights: Weights) -> Resampled:
    """Pearson's correlation of mid-ranks under each row of weights; NaN where either is constant."""

    def rho(some: Weights) -> Float[np.ndarray, " s"]:
        one, other = (_standardised(weighted_ranks(values, some), some) for values in (x, y))
        return (some * one * other).sum(axis=1) / some.sum(axis=1)

    return _in_chunks(rho, weights)


def partial_spearman(x: Values, y: Values, given: Sequence[Values], weights: Weights) -> Resampled:
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


def slope(x: Values, y: Values, weights: Weights) -> Resampled:
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


def _in_chunks(function: Callable[[Weights], Float[np.ndarray, " s"]], weights: Weights) -> Resampled:
    rows = max(1, _CHUNK_ENTRIES // max(1, weights.shape[1]))
    return np.concatenate([function(weights[at : at + rows]) for at in range(0, len(weights), rows)])
