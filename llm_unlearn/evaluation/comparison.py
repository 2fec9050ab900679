"""Several runs in one table, where they may stand in one: same forget rows, same tokens, same definitions.

Like everything about reports it needs neither torch nor a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.evaluation.metrics import target_of
from llm_unlearn.evaluation.svg import number

if TYPE_CHECKING:
    from rich.table import Table

    from llm_unlearn.evaluation.records import MetricRecord
    from llm_unlearn.evaluation.report import EvalReport

COMMON = {"before": "before", "reference": "retain model", "target": "target"}
"""Columns that belong to no run: attributes of `Row`, and how they are called."""

_READING = (
    "Best marks the value nearest to its target, or the best one in the metric's direction where no target is known. "
    "Each column is one run: where intervals overlap, this is no ranking."
)


@dataclass(frozen=True)
class Row:
    """One metric of all runs.

    Attributes:
        name: the metric.
        records: one per run, in their order; None where a run does not know the metric.
        before: the value of the model before unlearning, where all runs share it.
        reference: the retain model's value, where all runs share it.
        target: the value to reach, where all runs share it.
        best: positions of the best runs; none where fewer than two are measured, or nothing says what is better.
    """

    name: str
    records: tuple[MetricRecord | None, ...]
    before: float | None
    reference: float | None
    target: float | None
    best: frozenset[int]

    @property
    def counts(self) -> list[int]:
        """Numbers of items that the runs measured it on, each once."""
        return list(dict.fromkeys(record.n for record in self.records if record is not None and record.n))


@dataclass(frozen=True)
class Comparison:
    """Runs that may be compared, as `compare` returns them.

    Attributes:
        runs: their reports by name.
        rows: the metrics at least one of them measured.
        notes: in what the runs differ, and how to read the table.
    """

    runs: Mapping[str, EvalReport]
    rows: Sequence[Row]
    notes: Sequence[str]

    def table(self) -> Table:
        """For the terminal: metrics by runs, without intervals; ``*`` marks the best."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title="Comparison", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
        header, *rows = _cells(self, _value_and_mark, ("target",))
        for position, column in enumerate(header):
            # Long names of runs are folded, numbers never.
            widest = max(len(row[position]) for row in rows)
            table.add_column(column, justify="right" if position else "left", min_width=widest, overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        table.caption = Text("\n".join(("*: best", *self.notes)))
        return table

    def to_markdown(self) -> str:
        """One page: the table with intervals, the best in bold, and the notes."""
        escaped = [
            [cell.replace("|", "\\|").replace("<", "&lt;") for cell in row]
            for row in _cells(self, _in_full, ("before", "reference", "target"))
        ]
        header, *body = escaped
        lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"# Comparison of {len(self.runs)} runs\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def load_runs(paths: Sequence[str | os.PathLike]) -> dict[str, EvalReport]:
    """Read the reports of several runs and name them after their folders; equal names get the folder above in front.

    Args:
        paths: folders with a `report.json`, or such files.

    Raises:
        ValueError: fewer than two runs, the same one twice, or a file that is no report.
        FileNotFoundError: there is no report.
    """
    from llm_unlearn.evaluation.report import EvalReport

    if len(paths) < 2:
        raise ValueError(f"A comparison takes at least two runs, but {len(paths)} given: name their folders.")
    places = [Path(path).resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise ValueError(f"{paths[i]} is given twice: name different runs.")
    return {name: EvalReport.load(path) for name, path in zip(_distinct_names(places), paths, strict=True)}


def compare(runs: Mapping[str, EvalReport]) -> Comparison:
    """Put runs side by side.

    Raises:
        ValueError: runs that may not stand in one table: other forget rows, other variants of a metric, or another
            tokenizer or chat template, which shows in the number of tokens of an answer.
    """
    for pair in combinations(runs.items(), 2):
        _require_comparable(*pair)
    reports = list(runs.values())
    before, reference = (shared_values(reports, block) for block in ("before", "reference"))
    rows = []
    for name in dict.fromkeys(name for report in reports for name in report.metrics):
        records = tuple(report.metrics.get(name) for report in reports)
        measured = [record for record in records if record is not None and record.value is not None]
        if measured:
            targets = {record.target for record in measured}
            target = targets.pop() if len(targets) == 1 else None
            rows.append(Row(name, records, before.get(name), reference.get(name), target, _best(name, records)))
    return Comparison(runs, rows, [*_differences(runs), *_uneven(rows), _READING])


def shared_values(reports: Sequence[EvalReport], block: str) -> dict[str, float]:
    """The values of `before` or `reference`, where every report has them and all agree; else nothing."""
    values = [{name: record.value for name, record in getattr(report, block).items()} for report in reports]
    common = set.intersection(*(set(one) for one in values))
    # Metrics of the whole model may also depend on the other models of a run (AUS on the one before).
    agreed = {name for name in common if all(one[name] == values[0][name] for one in values)}
    if any("/" in name for name in common - agreed):
        return {}
    return {name: value for name, value in values[0].items() if name in agreed and value is not None}


def differing_settings(provenances: Mapping[str, Mapping[str, Any]], who: str) -> list[str]:
    """In which settings evaluations differ that may stand side by side all the same; a note for each.

    Args:
        provenances: provenance of each evaluation, by the name a reader knows it by.
        who: what they are, as the subject of a sentence.
    """
    notes = []
    for key in ("tier", "generation", "precision"):
        values = {name: provenance.get(key) for name, provenance in provenances.items()}
        if len(set(values.values())) > 1:
            told = "; ".join(f"{name}: {value}" for name, value in values.items())
            notes.append(f"{who} differ in {key}. {told}.")
            if key == "generation" and "none" not in values.values():
                # All decode greedily, so that rules of generation differ in nothing else.
                notes[-1] += " Texts were cut at different lengths."
    return notes


def settings_beside(report: EvalReport) -> list[str]:
    """The same of the model of a report and those it stands beside: a reference may be of another tier."""
    others = {COMMON[name]: report.provenance[name] for name in ("before", "reference") if name in report.provenance}
    return differing_settings({"this model": report.provenance, **others}, "This evaluation and those beside it")


def distance_from_target(name: str, record: MetricRecord) -> float | None:
    """How far a value is from its target, at least 0; None where either is unknown.

    Where the target is the retain model's value, what a model has that never learned the data, beyond it is as far off
    as before it. Elsewhere a value better than its target has reached it.
    """
    if record.value is None or record.target is None:
        return None
    difference = record.target - record.value
    if record.higher_is_better is None or target_source(name) == "reference":
        return abs(difference)
    return max(difference if record.higher_is_better else -difference, 0.0)


def target_source(name: str) -> str | float | None:
    """As `metrics.target_of`; None for a metric that this version does not know."""
    try:
        return target_of(name)
    except KeyError:
        return None


def log10_p(record: MetricRecord | None) -> float | None:
    """Decimal logarithm of a forget quality, at most 0, finite also where p is too small for a float."""
    if record is None or record.value is None or record.details is None:
        return None
    return record.details["log10_p"]


def _best(name: str, records: Sequence[MetricRecord | None]) -> frozenset[int]:
    measured = {i: record for i, record in enumerate(records) if record is not None and record.value is not None}
    one = next(iter(measured.values()))
    if name == "forget_quality":  # 1 - 1e-20 and 1 - 1e-90 are the same number
        worse = {i: -log10_p(record) for i, record in measured.items()}
    elif all(record.target is not None for record in measured.values()):
        worse = {i: distance_from_target(name, record) for i, record in measured.items()}
    elif one.higher_is_better is not None and all(record.target is None for record in measured.values()):
        worse = {i: -record.value if one.higher_is_better else record.value for i, record in measured.items()}
    else:
        return frozenset()
    if len(set(worse.values())) < 2:
        return frozenset()
    return frozenset(i for i in worse if worse[i] == min(worse.values()))


def _require_comparable(one: tuple[str, EvalReport], other: tuple[str, EvalReport]) -> None:
    (name, first), (other_name, second) = one, other
    reason = _other_rows(first, second) or _other_variants(first, second) or _other_tokens(first, second)
    if reason:
        raise ValueError(f"{name} and {other_name} cannot stand in one table: {reason}")


def _other_rows(first: EvalReport, second: EvalReport) -> str | None:
    rows, others = (
        {item["row"]: (item["question"], item["answer"]) for item in report.items if item["set"] == "forget"}
        for report in (first, second)
    )
    if rows == others:
        return None
    mend = "Evaluate both on the same data with `llm-unlearn eval --dataset ... --forget_split ...`."
    if len(rows) != len(others):
        return f"one was evaluated on {len(rows)} forget rows, the other on {len(others)}. {mend}"
    row = next(row for row in rows if rows[row] != others.get(row))
    return f"forget row {row} is {' '.join(rows[row])!r} in one and another in the other. {mend}"


def _other_variants(first: EvalReport, second: EvalReport) -> str | None:
    for name in [name for name in first.metrics if name in second.metrics]:
        variants = [report.metrics[name].variant for report in (first, second)]
        if variants[0] != variants[1]:
            return (
                f"{name} is defined as {variants[0]} in one and as {variants[1]} in the other. Evaluate both with the "
                "same `--compat`."
            )
    return None


def _other_tokens(first: EvalReport, second: EvalReport) -> str | None:
    why = "so their tokenizers, prompts or lengths differ, and so do probabilities: compare runs of one base model."
    lengths, others = (
        {item["row"]: item["n_tokens"] for item in report.items if item["set"] == "forget"}
        for report in (first, second)
    )
    for row, length in lengths.items():
        if length != others[row]:
            return f"the answer of forget row {row} has {length} tokens in one and {others[row]} in the other, {why}"
    if first.provenance.get("forget_ids") != second.provenance.get("forget_ids"):
        return f"the token ids of their forget rows differ, {why}"
    return None


def _differences(runs: Mapping[str, EvalReport]) -> list[str]:
    """What the runs do not share although they may stand in one table."""
    notes = differing_settings({name: report.provenance for name, report in runs.items()}, "The runs")
    for block, model in (("before", "models before unlearning"), ("reference", "retain models")):
        reports = list(runs.values())
        known = any(record.value is not None for report in reports for record in getattr(report, block).values())
        if known and not shared_values(reports, block):
            notes.append(
                f"The runs do not share their {model}: targets are each run's own, and no common one is shown."
            )
    return notes


def _uneven(rows: Sequence[Row]) -> list[str]:
    names = [row.name for row in rows if len(row.counts) > 1]
    return [f"Measured on different numbers of items: {', '.join(names)}."] if names else []


def _cells(
    comparison: Comparison, cell: Callable[[MetricRecord | None, bool], str], common: Sequence[str]
) -> list[list[str]]:
    """Header and rows; of the columns common to all runs those that hold something."""
    rows = comparison.rows
    common = [name for name in common if any(getattr(row, name) is not None for row in rows)]
    header = ["metric", *comparison.runs, *(COMMON[name] for name in common), "n"]
    body = []
    for row in rows:
        arrow = {True: " ↑", False: " ↓", None: ""}[next(r for r in row.records if r is not None).higher_is_better]
        values = [cell(record, i in row.best) for i, record in enumerate(row.records)]
        known = [getattr(row, name) for name in common]
        shared = ["-" if value is None else number(value) for value in known]
        body.append([f"{row.name}{arrow}", *values, *shared, "/".join(map(str, row.counts))])
    return [header, *body]


def _value_and_mark(record: MetricRecord | None, best: bool) -> str:
    return "-" if record is None or record.value is None else f"{number(record.value)}{'*' if best else ''}"


def _in_full(record: MetricRecord | None, best: bool) -> str:
    if record is None or record.value is None:
        return "not measured"
    value = f"**{number(record.value)}**" if best else number(record.value)
    return value if record.ci95 is None else f"{value} [{number(record.ci95[0])}, {number(record.ci95[1])}]"


def _distinct_names(places: Sequence[Path]) -> list[str]:
    """Folder names (file names where a file is no `report.json`), with as much of what is above as it takes."""
    named = [place.parent if place.name == "report.json" else place.with_suffix("") for place in places]
    for depth in range(1, max(len(place.parts) for place in named) + 1):
        names = ["/".join(place.parts[-depth:]) for place in named]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{places[0]} and another run are the same: name different runs.")
