"""A probe as HTML: a page of its own, and a section in the report of a run. Everything inside, all text escaped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_unlearn.evaluation.html import Section, templates
from llm_unlearn.evaluation.svg import number
from llm_unlearn.paths import public_name
from llm_unlearn.probes import plots, tables
from llm_unlearn.probes.records import OUTCOMES, FactRow, ProbeResult
from llm_unlearn.probes.report import DROPS, EXPECTED, FILES, READING, load_result, shown_provenance

_NUMBERS = ("p1", "p3_rank", "p4_rank", "generation", "leaks")


def page(result: ProbeResult) -> str:
    """The probe as a page of its own: findings, plots, tables, every fact with what was answered, provenance."""
    return _render("probe.html.j2", result, facts=_facts(result), rows=_answers(result))


def section(result: ProbeResult) -> Section:
    """The probe as a section for `evaluation.html.page`: all of its page but the single facts."""
    return Section("frequency", "Frequency probe", _render("section.html.j2", result))


def sections_of(folder: Path) -> list[Section]:
    """The section of the probe whose report lies in a folder, for the page of a run; none where there is no probe.

    Raises:
        ValueError: see `load_result`.
    """
    return [section(load_result(folder))] if (folder / FILES[0]).is_file() else []


@dataclass(frozen=True)
class _Plot:
    """A drawing, or in its place why there is none."""

    title: str
    svg: str | None
    caption: str


def _render(template: str, result: ProbeResult, **more: Any) -> str:
    return (
        templates("llm_unlearn.probes")
        .get_template(template)
        .render(
            result=result,
            cards=_cards(result),
            notes=[*result.warnings, *tables.gate_notes(result.gates)],
            plots=_plots(result),
            tables=_tables(result),
            reading=f"{READING} {EXPECTED}",
            provenance=shown_provenance(result),
            **more,
        )
    )


def _facts(result: ProbeResult) -> dict[str, Any]:
    """What was probed, in a few words each."""
    own = result.provenance
    facts = {
        "model": own.get("model") and public_name(own["model"]),
        "count": result.label,
        "facts to be forgotten": sum(bucket.n for bucket in result.buckets),
        "of these known": len(result.known()),
        "protocol": result.protocol,
        "runs": ", ".join(result.runs),
        "base": own.get("stage"),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _cards(result: ProbeResult) -> list[dict[str, str]]:
    """The headline numbers, without a verdict of good or bad: a probe reports, whichever way it points."""
    cards = []
    for outcome, title in OUTCOMES.items():
        found = result.associations[outcome]
        cards.append(_card(f"Count and forgetting, {title}", "Spearman's ρ", found.spearman, tables.finding(found)))
        cards.append(_card(f"Highest less lowest bucket, {title}", "mean F", found.gap, ""))
    disagreement = result.disagreement
    rate = tables.NOT_MEASURED if disagreement.rate is None else f"{disagreement.rate:.0%}"
    parted = f"{disagreement.hidden} hidden, {disagreement.apparent} apparent"
    cards.append(
        {
            "title": "Probability and generation disagree",
            "value": rate,
            "interval": "",
            "verdict": f"{parted} of {disagreement.n} known facts",
            "small": "κ " + (tables.NOT_MEASURED if disagreement.kappa is None else number(disagreement.kappa)),
        }
    )
    return cards


def _card(title: str, what: str, one: Any, verdict: str) -> dict[str, str]:
    measured = one.value is not None
    return {
        "title": title,
        "value": number(one.value) if measured else tables.NOT_MEASURED,
        "interval": f"[{number(one.ci95[0])}, {number(one.ci95[1])}]" if one.ci95 is not None else "",
        "verdict": verdict if measured else (one.note or "").removeprefix("not measured: "),
        "small": f"{what}, n = {one.n}" + (f", p = {one.p:.2g}" if one.p is not None else ""),
    }


def _plots(result: ProbeResult) -> list[_Plot]:
    rows, settings = result.known(), result.settings
    plots_ = [
        _plot(
            f"Count against forgetting: {title}",
            lambda outcome=outcome: plots.count_against_forgetting(
                rows, outcome, result.associations[outcome].slope, result.label
            ),
            "Each point is a fact that the base model knew; the dashed line is that of least squares. F below −1 "
            "stands at the lower edge.",
        )
        for outcome, title in OUTCOMES.items()
    ]
    plots_.append(
        _plot(
            "Forgetting by bucket",
            lambda: plots.forgetting_by_bucket(result.buckets),
            "Mean F of the known facts with its 95 % interval; n counts them.",
        )
    )
    plots_.append(
        _plot(
            "Probability against generated answers",
            lambda: plots.probability_against_generation(rows, settings["gone_p1"], settings["gone_recall"]),
            "Upper left: hidden, improbable and still answered. Lower right: apparent, no longer answered and still "
            "probable. Where True/False statements count, a fact whose two are still told apart is not gone by "
            "probability, wherever it stands.",
        )
    )
    return plots_


def _plot(title: str, draw: Callable[[], str], caption: str) -> _Plot:
    try:
        return _Plot(title, draw(), caption)
    except ValueError as error:
        return _Plot(title, None, f"Not drawn: {error}")


def _tables(result: ProbeResult) -> list[dict[str, Any]]:
    shown = [
        ("Count and forgetting", tables.association_cells(result), ""),
        ("Buckets", tables.bucket_cells(result), DROPS),
        ("Probes, before → after", tables.probe_cells(result), "Means over the known facts of a bucket."),
        ("Probability and generation", tables.disagreement_cells(result), tables.disagreement_text(result)),
    ]
    if result.statements:
        caption = (
            "Of the known facts. A model that always says the same has a balanced accuracy of .5 and a bias of ±.5; "
            "without false twins it would look perfect, or perfectly unlearned."
        )
        shown.append(("True/False statements", tables.statement_cells(result), caption))
    return [
        {"title": title, "header": cells[0], "rows": cells[1:], "caption": caption} for title, cells, caption in shown
    ]


def _answers(result: ProbeResult) -> list[dict[str, Any]]:
    """Every fact with the direct answers before and after, those to be forgotten first."""
    rows = sorted(result.rows, key=lambda row: row.bucket is None)
    return [
        {
            "row": row,
            "set": row.bucket or row.role,
            "tags": _tags(row, len(result.runs) > 1),
            "before": _said(row, "before"),
            "after": _said(row, "after"),
        }
        for row in rows
    ]


def _tags(row: FactRow, many_runs: bool) -> list[str]:
    tags = [row.bucket or row.role]
    if row.count is not None:
        tags.append(f"count {'about ' if row.approx else ''}{row.count:g}")
    if many_runs:
        tags.append(f"run {row.run}")
    if not row.known:
        tags.append("not known to the base")
    elif row.bucket is not None:
        tags.append(plots.CASES[(row.prob_forgotten, row.gen_forgotten)].partition(":")[0])
    return tags


def _said(row: FactRow, when: str) -> dict[str, Any]:
    measured = getattr(row, when)
    values = {name: getattr(measured, name) for name in _NUMBERS}
    return {
        "text": measured.said[0].text,
        "numbers": {
            name.replace("_", " "): number(value) if isinstance(value, float) else value
            for name, value in values.items()
            if value is not None
        },
    }
