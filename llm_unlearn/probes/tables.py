"""What a probe found as tables: one row per fact for CSV, buckets and associations for the terminal and for Markdown.

What was not measured reads "not measured" everywhere, in CSV, too.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_unlearn.evaluation.svg import number
from llm_unlearn.probes.records import OUTCOMES, Association, BucketRow, Estimate, ProbeResult

if TYPE_CHECKING:
    from rich.table import Table

    from llm_unlearn.probes.counts.record import FactCounts
    from llm_unlearn.probes.seeds import SeedAverage

NOT_MEASURED = "not measured"

ASSOCIATIONS = {
    "spearman": "Spearman's ρ of count and F",
    "kendall": "Kendall's τ-b",
    "partial": "ρ given base confidence and answer length",
    "slope": "change of F per tenfold count",
    "gap": "mean F, highest less lowest bucket",
}
"""How pages call the numbers of an `Association`."""

PROBES_SHOWN = {
    "p1": "P1 answer likelihood",
    "p2": "P2 True/False, balanced accuracy",
    "p3": "P3 answer ranked first",
    "p4": "P4 first token still first",
    "g1": "G1 recall, direct",
    "g2_mean": "G2 recall, paraphrases, mean",
    "g2_max": "G2 recall, paraphrases, max",
    "generation": "generation score",
    "g3_leak": "G3 leak in samples",
    "g4": "G4 reverse and indirect, max",
}
"""Means of a bucket that tables show, in their order."""

LARGEST_P = 0.05
"""From where on a permutation p speaks against a tendency."""

OTHERS = {"neighbour": "neighbours", "retain": "facts to keep", "others": "other buckets"}
"""How tables call facts that a run was not to take."""

Cells = list[list[str]]


def facts_csv(result: ProbeResult) -> str:
    """One line per fact and run, with the columns of `FactRow.flat`.

    Numbers are written so that they come back equal; booleans are `true` and `false`.
    """
    rows = [row.flat() for row in result.rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def bucket_cells(result: ProbeResult) -> Cells:
    """Header and one line per bucket: size, forgetting with intervals, what is gone, where the families disagree."""
    header = ["bucket", "count", "facts", "known", "base P1"]
    header += [f"F, {name}" for name in OUTCOMES.values()]
    header += ["gone by probability", "gone by generation", "hidden", "apparent"]
    drops = _drops_of(result)
    header += [f"F of {OTHERS[of]}, {OUTCOMES[outcome]}" for of, outcome in (name.split("/") for name in drops)]
    return [header, *(_bucket_line(bucket, drops) for bucket in result.buckets)]


def brief_bucket_cells(result: ProbeResult) -> Cells:
    """What of `bucket_cells` fits a terminal: intervals and what was taken from others are left to the report."""
    rows = [["bucket", "count", "known", *(f"F, {name}" for name in OUTCOMES.values()), "gone by P", "gone by G"]]
    for bucket in result.buckets:
        name, span, n, known, _, *_ = _bucket_line(bucket, [])
        means = [_plain(bucket.forgetting[outcome].value) for outcome in OUTCOMES]
        gone = [_share(bucket.forgotten.get(family)) for family in ("prob", "gen")]
        rows.append([name, span, f"{known} of {n}", *means, *gone])
    return rows


def probe_cells(result: ProbeResult) -> Cells:
    """Header and one line per probe: its mean over the known facts of each bucket, before → after."""
    rows = [["probe", *(bucket.name for bucket in result.buckets)]]
    for name, title in PROBES_SHOWN.items():
        rows.append([title, *(_change(bucket, name) for bucket in result.buckets)])
    return rows


def association_cells(result: ProbeResult) -> Cells:
    """Header and one line per number, for both outcomes."""
    rows = [["count and forgetting", *OUTCOMES.values()]]
    for name, title in ASSOCIATIONS.items():
        rows.append([title, *(estimate_text(getattr(result.associations[of], name)) for of in OUTCOMES)])
    return rows


def disagreement_cells(result: ProbeResult) -> Cells:
    """The 2x2 table: what probabilities say across, what generated answers say downwards."""
    found = result.disagreement
    return [
        ["", "gone by probability", "not gone by probability"],
        ["gone by generation", str(found.both), f"{found.apparent} apparent"],
        ["not gone by generation", f"{found.hidden} hidden", str(found.neither)],
    ]


def disagreement_text(result: ProbeResult) -> str:
    """Rate and kappa of the disagreement, and what probability rests on, in a sentence or two."""
    found = result.disagreement
    rate = NOT_MEASURED if found.rate is None else f"{found.rate:.0%} of {found.n} known facts"
    kappa = "not measured (one of them says the same of all facts)" if found.kappa is None else number(found.kappa)
    rests = "P1 and True/False statements" if found.uses_p2 else "P1 alone, as True/False statements do not count here"
    return f"They disagree on {rate}; Cohen's κ {kappa}. Gone by probability rests on {rests}."


def statement_cells(result: ProbeResult) -> Cells:
    """Header and one line per model: how it did on true statements and on their false twins."""
    rows = [["model", "true statements", "false twins", "balanced accuracy", "bias", "always says"]]
    for name, verdict in result.statements.items():
        rows.append(
            [
                name,
                f"{verdict.true_accuracy:.0%}",
                f"{verdict.false_accuracy:.0%}",
                number(verdict.balanced_accuracy),
                f"{verdict.bias:+.3f}",
                verdict.always or "–",
            ]
        )
    return rows


def count_cells(counts: FactCounts, shown: int = 12) -> Cells:
    """Header and the facts with the highest and the lowest counts, at most `shown` of them."""
    ordered = sorted(counts.counts.values(), key=lambda one: (-one.n_so, one.id))
    half = shown // 2
    rows = [["fact", "count", "subject", "object", "documents with both"]]
    left_out = len(ordered) > shown
    for one in [*ordered[:half], *ordered[-half:]] if left_out else ordered:
        numbers = (one.n_so, one.n_s, one.n_o, one.d_so)
        rows.append([one.id, *("–" if number is None else f"{number:g}" for number in numbers)])
    return [*rows[: half + 1], ["…", "", "", "", ""], *rows[half + 1 :]] if left_out else rows


def count_text(counts: FactCounts) -> str:
    """How the counts are spread, in a sentence."""
    return (
        f"{len(counts.counts)} facts; {counts.share_zero:.0%} have the count 0, {counts.share_approx:.0%} are "
        f"estimates, and log10(1 + count) spans {counts.decades:.2f}."
    )


def average_cells(averages: Mapping[str, SeedAverage]) -> Cells:
    """Header and one line per number, for both outcomes."""
    titles = {
        "spearman": "ρ, interval over seeds",
        "spearman_over_facts": "ρ, interval over facts",
        "slope": ASSOCIATIONS["slope"],
        "gap": ASSOCIATIONS["gap"],
    }
    rows = [["count and forgetting", *OUTCOMES.values()]]
    for name, title in titles.items():
        rows.append([title, *(estimate_text(getattr(averages[of], name)) for of in OUTCOMES)])
    return rows


def size_cells(slopes: Mapping[str, Estimate], by_size: Mapping[float, ProbeResult]) -> Cells:
    """Header and one line per bucket: the rate of disagreement of each size, and its change per tenfold parameters."""
    rows = [["facts", *(f"{size:g}" for size in by_size), "per tenfold parameters"]]
    for name, slope in slopes.items():
        rates = []
        for result in by_size.values():
            parts = {"all": result.disagreement, **{bucket.name: bucket.disagreement for bucket in result.buckets}}
            rates.append(_share(parts[name].rate if name in parts else None))
        rows.append([name, *rates, estimate_text(slope)])
    return rows


def estimate_text(one: Estimate) -> str:
    """A number with interval and p-value, or why it is missing."""
    if one.value is None:
        return one.note or NOT_MEASURED
    interval = "" if one.ci95 is None else f" [{number(one.ci95[0])}, {number(one.ci95[1])}]"
    p = "" if one.p is None else f", p = {one.p:.2g}"
    return f"{number(one.value)}{interval}{p}"


def finding(association: Association) -> str:
    """What the correlation of count and forgetting says, in a sentence; the paper's claim is a rho below 0.

    A tendency is told where the interval excludes 0 and the permutation p, if there is one, is below .05.
    """
    rho = association.spearman
    if rho.value is None or rho.ci95 is None:
        return "Whether frequent facts were harder to unlearn cannot be told."
    low, high = rho.ci95
    if not low <= 0 <= high and rho.p is not None and rho.p >= LARGEST_P:
        return f"No tendency can be told: the interval does not hold 0, but p is {rho.p:.2g}."
    if high < 0:
        return "Frequent facts were forgotten less: the interval lies below 0."
    if low > 0:
        return "Frequent facts were forgotten more: the interval lies above 0."
    return "No tendency can be told: the interval holds 0."


def rich_table(cells: Cells, title: str, caption: str | None = None) -> Table:
    """A table for the terminal; the first column stands left, the others right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    table.caption = None if caption is None else Text(caption)
    header, *rows = cells
    for place, column in enumerate(header):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def markdown_table(cells: Cells) -> str:
    """A table of Markdown; no cell can end it."""
    header, *body = [[" ".join(cell.replace("|", "\\|").replace("<", "&lt;").split()) for cell in row] for row in cells]
    marks = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *body))


def _drops_of(result: ProbeResult) -> list[str]:
    """Names of what the runs took from other facts, as far as there are such facts."""
    names = dict.fromkeys(name for bucket in result.buckets for name in bucket.drops)
    return [name for name in names if any(_value(bucket, name) is not None for bucket in result.buckets)]


def _value(bucket: BucketRow, drop: str) -> float | None:
    return bucket.drops[drop].value if drop in bucket.drops else None


def _bucket_line(bucket: BucketRow, drops: Sequence[str]) -> list[str]:
    span = f"{bucket.lowest:g}" if bucket.lowest == bucket.highest else f"{bucket.lowest:g} to {bucket.highest:g}"
    cells = [bucket.name, span, str(bucket.n), str(bucket.n_known), _plain(bucket.confidence)]
    cells += [estimate_text(bucket.forgetting[outcome]) for outcome in OUTCOMES]
    cells += [_share(bucket.forgotten.get(family)) for family in ("prob", "gen")]
    cells += [str(bucket.disagreement.hidden), str(bucket.disagreement.apparent)]
    return cells + [_plain(_value(bucket, name)) for name in drops]


def _change(bucket: BucketRow, name: str) -> str:
    before, after = bucket.before.get(name), bucket.after.get(name)
    return NOT_MEASURED if before is None or after is None else f"{number(before)} → {number(after)}"


def _plain(value: float | None) -> str:
    return NOT_MEASURED if value is None else number(value)


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.0%}"


def _csv_cell(value: Any) -> str:
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def gate_notes(gates: Mapping[str, Any]) -> list[str]:
    """Which probes do not count, and why."""
    return [f"{name.upper()}: {gate.reason}." for name, gate in gates.items() if not gate.passed]
