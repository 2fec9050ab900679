"""The controlled experiment in one table: seeds that differ in their world, too, put together.

`seeds.average_over_seeds` is for runs on the same facts. Here each seed has authors, facts and wordings of its own, so
that an interval over seeds says how much all of these vary, and one over authors is about the authors of all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_unlearn.evaluation.statistics import resampling_weights
from llm_unlearn.probes.records import OUTCOMES, Estimate, FactRow, ProbeResult
from llm_unlearn.probes.seeds import fisher_z, mean_over_seeds
from llm_unlearn.probes.statistics import FEWEST_CLUSTERS, Values, degenerate, expanded_interval
from llm_unlearn.probes.tables import Cells, estimate_text

SHUFFLES = 40
"""Enough to tell an interval that covers 0 in 19 of 20 shuffles from one that does not in every fourth."""


@dataclass(frozen=True)
class Shuffled:
    """`OutcomeSummary.rho_over_authors` with counts dealt out anew among the known facts of each seed, several times.

    Attributes:
        mean: of rho, which ought to be near 0; None where there is no rho.
        covering: shuffles in which the 95 % interval covers 0, which ought to be about 95 of 100.
        n: shuffles.
    """

    mean: float | None
    covering: int
    n: int

    @property
    def text(self) -> str:
        """As a table shows it."""
        if self.mean is None:
            return "not measured"
        return f"{self.mean:+.3f}, interval over 0 in {self.covering} of {self.n}"


@dataclass(frozen=True)
class OutcomeSummary:
    """What the seeds say together of one way to measure forgetting.

    Attributes:
        rho: Spearman's correlation of log count and F over known facts, averaged by Fisher's z, interval over seeds.
        rho_over_authors: the same, with the bootstrap interval over authors, drawn within each seed; with fewer than 10
            in all over facts.
        shuffled: the control, in which counts mean nothing.
        slope: change of F per tenfold count, mean and interval over seeds.
        gap: mean F of the highest less that of the lowest bucket, mean and interval over seeds.
        forgetting: mean F over known facts, mean and interval over seeds.
    """

    rho: Estimate
    rho_over_authors: Estimate
    shuffled: Shuffled
    slope: Estimate
    gap: Estimate
    forgetting: Estimate


@dataclass(frozen=True)
class RunSummary:
    """What the seeds say together of one method.

    Attributes:
        outcomes: by outcome (`records.OUTCOMES`).
        known: known facts to be forgotten, of each seed.
        retained, neighbours: mean share of P1 that known facts to be retained and neighbours kept; None without such.
        disagreement: mean over seeds of the share of known facts on which probability and generation disagree.
        hidden, apparent: its parts: gone by probability and still answered, and the reverse.
    """

    outcomes: dict[str, OutcomeSummary]
    known: tuple[int, ...]
    retained: Estimate | None
    neighbours: Estimate | None
    disagreement: Estimate
    hidden: Estimate
    apparent: Estimate


def summarise(results: Sequence[ProbeResult], seed: int = 0, resamples: int = 1000) -> RunSummary:
    """Put the results of one method together, one for each seed.

    Args:
        results: of the seeds, each with facts and counts of its own.
        seed: of the shuffled control and of the resamples.
        resamples: number of resamples.

    Raises:
        ValueError: there is none, or in one of them the base knew no fact.
    """
    if not results:
        raise ValueError("There is no result to put together: give one for each seed.")
    known = [result.known() for result in results]
    if not all(known):
        raise ValueError(
            f"In seed {[bool(rows) for rows in known].index(False)} the base knew no fact to be forgotten: train it "
            "for longer (`--target_epochs`)."
        )
    return RunSummary(
        outcomes={outcome: _outcome(results, known, outcome, seed, resamples) for outcome in OUTCOMES},
        known=tuple(map(len, known)),
        retained=_kept(results, "retain"),
        neighbours=_kept(results, "neighbour"),
        disagreement=mean_over_seeds([result.disagreement.rate for result in results]),
        hidden=mean_over_seeds([result.disagreement.hidden / result.disagreement.n for result in results]),
        apparent=mean_over_seeds([result.disagreement.apparent / result.disagreement.n for result in results]),
    )


def paired_difference(ours: Sequence[ProbeResult], theirs: Sequence[ProbeResult], outcome: str) -> Estimate:
    """Mean over seeds of the gap of `ours` less that of `theirs`, whose seeds are the same, in order.

    Raises:
        ValueError: they are of different numbers of seeds.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} results stand beside {len(theirs)}: give those of the same seeds.")
    pairs = [tuple(result.associations[outcome].gap for result in pair) for pair in zip(ours, theirs, strict=True)]
    missing = next((gap for pair in pairs for gap in pair if gap.value is None), None)
    if missing:
        return Estimate(None, n=len(ours), note=missing.note)
    return mean_over_seeds([own.value - other.value for own, other in pairs])


def _outcome(
    results: Sequence[ProbeResult], known: Sequence[Sequence[FactRow]], outcome: str, seed: int, resamples: int
) -> OutcomeSummary:
    of_runs = [[row for row in rows if row.forgetting(outcome) is not None] for rows in known]
    x = [np.array([row.x for row in rows], dtype=float) for rows in of_runs]
    f = [np.array([row.forgetting(outcome) for row in rows], dtype=float) for rows in of_runs]
    # Seeds may draw a name twice, and it is another author then.
    units = [[f"{run}/{row.cluster}" for row in rows] for run, rows in enumerate(of_runs)]
    if len({author for run in units for author in run}) < FEWEST_CLUSTERS:
        units = [[f"{run}/{row.id}" for row in rows] for run, rows in enumerate(of_runs)]
    over_seeds, over_authors = _fisher_average(x, f, units, seed, resamples)
    return OutcomeSummary(
        rho=over_seeds,
        rho_over_authors=over_authors,
        shuffled=_shuffled(x, f, units, seed, resamples),
        slope=_mean([result.associations[outcome].slope for result in results]),
        gap=_mean([result.associations[outcome].gap for result in results]),
        forgetting=mean_over_seeds([float(of_run.mean()) for of_run in f]),
    )


def _fisher_average(
    x: Sequence[Values], f: Sequence[Values], units: Sequence[Sequence[str]], seed: int, resamples: int
) -> tuple[Estimate, Estimate]:
    """``tanh(mean(atanh(rho)))`` over seeds, with Student's interval over seeds, and with a bootstrap over units.

    Units are drawn within each seed (`seeds.fisher_average` draws those that all runs share): drawn from all seeds
    together, some resamples would have none of a seed. The seeds are the strata of `statistics.expanded_interval`.
    """
    if reason := next((reason for pair in zip(x, f, strict=True) if (reason := degenerate(*pair))), None):
        missing = Estimate(None, n=len(x), note=reason)
        return missing, missing
    z, sizes = [], []
    for run, own in enumerate(units):
        place = {name: i for i, name in enumerate(dict.fromkeys(own))}
        drawn = resampling_weights(len(place), resamples=resamples, seed=seed + run)
        z.append(fisher_z(x[run], f[run], drawn[:, [place[name] for name in own]]))
        sizes.append(len(place))
    over_seeds = mean_over_seeds([float(of_run[0]) for of_run in z])
    rho = float(np.tanh(over_seeds.value))
    between = over_seeds.ci95 and tuple(map(float, np.tanh(over_seeds.ci95)))
    within = expanded_interval(np.tanh(np.mean(z, axis=0)), min(sizes), sum(sizes) - len(sizes))
    return Estimate(rho, between, len(x), note=over_seeds.note), Estimate(rho, within, len(x))


def _shuffled(
    x: Sequence[Values], f: Sequence[Values], units: Sequence[Sequence[str]], seed: int, resamples: int
) -> Shuffled:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(SHUFFLES):
        dealt = [random.permutation(of_run) for of_run in x]
        found.append(_fisher_average(dealt, f, units, seed, resamples)[1])
    rhos = [one.value for one in found if one.value is not None]
    covering = sum(one.ci95 is not None and one.ci95[0] <= 0 <= one.ci95[1] for one in found)
    return Shuffled(sum(rhos) / len(rhos) if rhos else None, covering, SHUFFLES)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    missing = next((one for one in estimates if one.value is None), None)
    if missing:
        return Estimate(None, n=len(estimates), note=missing.note)
    return mean_over_seeds([one.value for one in estimates])


def _kept(results: Sequence[ProbeResult], role: str) -> Estimate | None:
    """Of each seed ``sum p1 after / sum p1 before`` over known facts of a role."""
    rows = [[row for row in result.rows if row.role == role and row.known] for result in results]
    if not all(rows):
        return None
    return mean_over_seeds([sum(r.after.p1 for r in own) / sum(r.before.p1 for r in own) for own in rows])


TITLES = {
    "rho": "ρ of count and F, over seeds",
    "rho_over_authors": "ρ, over authors",
    "shuffled": "ρ with shuffled counts",
    "slope": "change of F per tenfold count",
    "gap": "mean F, highest less lowest bucket",
    "forgetting": "mean F",
}
"""How tables call the numbers of an `OutcomeSummary`."""


def summary_cells(summaries: Mapping[str, RunSummary]) -> Cells:
    """Header and one line per run: for each outcome all of `TITLES`, then what was kept, and the disagreement."""
    columns = [(outcome, name) for outcome in OUTCOMES for name in TITLES]
    header = ["run", "known", *(f"{OUTCOMES[outcome]}: {TITLES[name]}" for outcome, name in columns)]
    header += ["P1 kept, retain set", "P1 kept, neighbours", "disagreement", "hidden", "apparent"]
    rows = []
    for run, summary in summaries.items():
        numbers = [getattr(summary.outcomes[outcome], name) for outcome, name in columns]
        numbers += [summary.retained, summary.neighbours, summary.disagreement, summary.hidden, summary.apparent]
        rows.append([run, ", ".join(map(str, summary.known)), *map(_text, numbers)])
    return [header, *rows]


def _text(number: Estimate | Shuffled | None) -> str:
    if number is None:
        return "–"
    return number.text if isinstance(number, Shuffled) else estimate_text(number)
