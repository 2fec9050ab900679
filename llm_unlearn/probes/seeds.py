"""Several runs of one experiment that differ by their seed alone, averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llm_unlearn.evaluation.statistics import resampling_weights
from llm_unlearn.probes.records import OUTCOMES, Estimate, ProbeResult
from llm_unlearn.probes.statistics import (
    FEWEST_CLUSTERS,
    Resampled,
    Values,
    Weights,
    degenerate,
    expanded_interval,
    spearman,
    tendency,
)


@dataclass(frozen=True)
class SeedAverage:
    """Averages over seeds of one outcome; n is the number of seeds.

    Attributes:
        spearman: rho by Fisher's z, with the interval over seeds: how much training varies.
        spearman_over_facts: the same rho, with the interval over facts, drawn equally often in all runs: how much
            depends on the choice of facts. Both must lie below 0 before anything is said about other facts and seeds.
        slope, gap: means, with intervals over seeds.
    """

    spearman: Estimate
    spearman_over_facts: Estimate
    slope: Estimate
    gap: Estimate


def average_over_seeds(results: Sequence[ProbeResult]) -> dict[str, SeedAverage]:
    """Average what results of the same facts and counts say, by outcome.

    Args:
        results: of runs that differ by their seed.

    Raises:
        ValueError: there is none, or they are of different facts, counts or protocols.
    """
    if not results:
        raise ValueError("There is no result to average: give one for each seed.")
    first = results[0]
    for other in results[1:]:
        if (other.label, other.protocol, _counts(other)) != (first.label, first.protocol, _counts(first)):
            raise ValueError(
                f"Results of {first.label} ({first.protocol}) cannot be averaged with others: give results of the same "
                "facts, counts and protocol, which differ by their seed alone."
            )
    return {outcome: _average(results, outcome) for outcome in OUTCOMES}


def fisher_average(
    x: Sequence[Values], y: Sequence[Values], units: Sequence[Sequence[str]], *, resamples: int = 1000, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """``tanh(mean(atanh(rho)))`` over runs, rho Spearman's, with the intervals of `SeedAverage`.

    Args:
        x, y: per run, ``(n_run,)`` each.
        units: per run what each fact is drawn with, such as its cluster.
        resamples: number of resamples.
        seed: of the resamples.

    Returns:
        The average with the interval over seeds (Student's t on z, from two seeds on), and with that over facts.
    """
    n = len(x)
    pairs = list(zip(x, y, strict=True))
    reasons = [reason for one, other in pairs if (reason := degenerate(one, other))]
    if reasons:
        missing = Estimate(None, n=n, note=f"{reasons[0]}, in {len(reasons)} of {n} runs")
        return missing, missing
    z = mean_over_seeds([float(fisher_z(one, other, np.ones((1, len(one))))[0]) for one, other in pairs])
    over_seeds = Estimate(float(np.tanh(z.value)), z.ci95 and tuple(map(float, np.tanh(z.ci95))), n, note=z.note)
    names = list(dict.fromkeys(unit for of_run in units for unit in of_run))
    drawn = resampling_weights(len(names), resamples=resamples, seed=seed)
    place = {name: i for i, name in enumerate(names)}
    of_runs = [
        fisher_z(one, other, drawn[:, [place[name] for name in own]])
        for (one, other), own in zip(pairs, units, strict=True)
    ]
    over_facts = expanded_interval(np.tanh(np.mean(of_runs, axis=0)), len(names), len(names) - 1)
    return over_seeds, Estimate(over_seeds.value, over_facts, n)


def fisher_z(x: Values, y: Values, weights: Weights) -> Resampled:
    """``atanh(rho)`` under each row of weights; 0 where x or y is constant (`statistics.tendency`).

    A correlation of 1 in size, whose z is infinite, counts as 1 - 1e-9.
    """
    return np.arctanh(np.clip(tendency(spearman(x, y, weights)), -1 + 1e-9, 1 - 1e-9))


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval of ``n - 1`` degrees of freedom, from two values on."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, n=n, note="no interval over seeds: two or more are needed")
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Estimate(mean, (mean - half, mean + half), n)


def _average(results: Sequence[ProbeResult], outcome: str) -> SeedAverage:
    of_runs = [[row for row in result.known() if row.forgetting(outcome) is not None] for result in results]
    by_cluster = all(len({row.cluster for row in rows}) >= FEWEST_CLUSTERS for rows in of_runs)
    rho, over_facts = fisher_average(
        [np.array([row.x for row in rows], dtype=float) for rows in of_runs],
        [np.array([row.forgetting(outcome) for row in rows], dtype=float) for rows in of_runs],
        [[row.cluster if by_cluster else row.id for row in rows] for rows in of_runs],
        resamples=results[0].settings["resamples"],
        seed=results[0].settings["seed"],
    )
    parts = {}
    for name in ("slope", "gap"):
        estimates = [getattr(result.associations[outcome], name) for result in results]
        missing = next((one for one in estimates if one.value is None), None)
        parts[name] = (
            mean_over_seeds([one.value for one in estimates])
            if missing is None
            else Estimate(None, n=len(results), note=missing.note)
        )
    return SeedAverage(rho, over_facts, **parts)


def _counts(result: ProbeResult) -> dict[str, float | None]:
    return {row.id: row.count for row in result.rows}
