"""Reports as one HTML page each: everything inside the file, nothing fetched, readable without JavaScript.

What a page says is decided here; how it looks in `templates`. All text of data and models is escaped: a model may
answer with a script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from llm_unlearn.evaluation.comparison import COMMON, distance_from_target, settings_beside, target_source
from llm_unlearn.evaluation.figures import (
    kept_parts,
    model_labels,
    per_item,
    plane,
    plane_of_runs,
    run_styles,
    truth_ratios,
    truth_ratios_of_runs,
    value_in,
    values_of,
)
from llm_unlearn.evaluation.plots import (
    metric_label,
    track,
)
from llm_unlearn.evaluation.rendering import run_notes
from llm_unlearn.evaluation.svg import number

if TYPE_CHECKING:
    from jinja2 import Environment

    from llm_unlearn.evaluation.comparison import Comparison
    from llm_unlearn.evaluation.records import MetricRecord
    from llm_unlearn.evaluation.report import EvalReport

HEADLINES = (
    "forget/extraction_strength",
    "forget/paraphrase_probability",
    "forget/probability",
    "forget/rouge_l_recall",
    "model_utility",
    "mem",
    "priv",
    "privleak",
    "overall_offline",
    "forget_quality",
)
"""What the summary shows, where it was measured. Forget quality stands last: it is a number of parity with the retain
model, and gibberish can have a high one."""

NEAR = 0.05
"""A value this near to its target counts as having reached it: as a share of the way from the value before unlearning,
or of the target where that is where it began."""

SIGNIFICANCE = 0.05
"""Forget quality at or above it is usually read as: cannot be told from the retain model."""

_ITEM_NUMBERS = ("probability", "rouge_l_recall", "truth_ratio")


@dataclass(frozen=True)
class Section:
    """A part of a page that another package renders.

    Attributes:
        anchor: id of its `section` element.
        title: what the navigation calls it.
        html: the whole element, with all text of data and models escaped.
    """

    anchor: str
    title: str
    html: str


def page(report: EvalReport, sections: Sequence[Section] = ()) -> str:
    """A report as a page: summary with targets, plots, all metrics, answers side by side, provenance.

    Args:
        report: the report.
        sections: further parts, before the answers.
    """
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            labels=model_labels(report),
            facts=_facts(report.provenance),
            cards=[_card(report, name) for name in HEADLINES if value_in(report.metrics, name) is not None],
            notes=[*settings_beside(report), *run_notes(report)],
            unmeasured=_unmeasured(report),
            plots=[truth_ratios(report), kept_parts(report), per_item(report), plane(report)],
            sets=_by_set(report),
            answers=_answers(report),
            items_total=len(report.items),
            item_sets=list(dict.fromkeys(item["set"] for item in report.items)),
            provenance=_provenance(report.provenance),
            near=NEAR,
            sections=sections,
        )
    )


def comparison_page(comparison: Comparison) -> str:
    """Several runs as a page: the table, forget quality against model utility, the distributions of truth ratios."""
    reports = list(comparison.runs.values())
    return (
        templates()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            facts={name: _facts(report.provenance) for name, report in comparison.runs.items()},
            styles=dict(zip(comparison.runs, run_styles(len(reports)), strict=True)),
            has={key: any(getattr(row, key) is not None for row in comparison.rows) for key in COMMON},
            plots=[plane_of_runs(comparison), truth_ratios_of_runs(comparison)],
        )
    )


def svg_file(drawing: str) -> str:
    """A drawing of `plots` as a file of its own: on white, its styles inside, with the colours of a light page.

    Colours are written out, because many programs that show or convert SVG know no CSS variables.
    """
    get = templates().get_template
    light = dict(re.findall(r"--([\w-]+): (#\w+);", get("page.css").render().partition("}")[0]))
    opening, rest = drawing.split(">", 1)
    styles, white = get("plots.css").render(), '<rect width="100%" height="100%" fill="#fff"/>'
    whole = f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{styles}</style>{white}{rest}\n'
    return re.sub(r"var\(--([\w-]+)[^)]*\)", lambda found: light[found[1]], whole)


@dataclass(frozen=True)
class _Card:
    """A headline number; `state` is good, away or open."""

    name: str
    record: MetricRecord
    title: str
    aim: str
    state: str
    verdict: str
    details: str
    track: str


@cache
def templates(*packages: str) -> Environment:
    """The templates of these packages and those of the reports, which they may extend; all text is escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "llm_unlearn.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, metric_label=metric_label, breakable=_breakable)
    environment.globals.update(distance_state=_state, common=COMMON)
    return environment


def _breakable(name: str) -> str:
    """A name that a narrow column may break where its parts meet."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))


def _facts(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What was evaluated, in a few words each; what is not known is left out."""
    run = provenance.get("run", {})
    data = run.get("data", {})
    facts = {
        "method": run.get("method"),
        "model": provenance.get("model") or run.get("base", {}).get("source"),
        "adapter": provenance.get("adapter"),
        "data": provenance.get("dataset") or data.get("dataset"),
        "forget split": provenance.get("forget_split") or data.get("forget", {}).get("split"),
        "retain split": provenance.get("retain_split") or (data.get("retain") or {}).get("split"),
        "tier": provenance.get("tier"),
        "precision": provenance.get("precision"),
        "device": provenance.get("device"),
        "seed": run.get("seed", provenance.get("seed")),
        "date": str(provenance.get("time", "")).replace("T", " ").replace("+00:00", " UTC"),
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _card(report: EvalReport, name: str) -> _Card:
    record = report.metrics[name]
    set_name, _, metric = name.rpartition("/")
    title = metric_label(metric) + (f", {set_name.replace('_', ' ')} set" if set_name else "")
    before = value_in(report.before, name)
    state, verdict = _verdict(name, record, before)
    return _Card(
        name=name,
        record=record,
        title=title[0].upper() + title[1:],
        aim=_aim(name, record),
        state=state,
        verdict=verdict,
        details=_details(name, record),
        track=_track(record, before),
    )


def _aim(name: str, record: MetricRecord) -> str:
    told = {True: "higher is better", False: "lower is better", None: "neither direction is better"}
    if record.target is None:
        return f"{told[record.higher_is_better]}; no target known"
    source = target_source(name)
    whose = {"reference": ", the retain model's value", "before": ", the value before unlearning"}.get(source, "")
    direction = "beyond it is no better" if source == "reference" else told[record.higher_is_better]
    return f"target {number(record.target)}{whose}; {direction}"


def _verdict(name: str, record: MetricRecord, before: float | None) -> tuple[str, str]:
    """State and a sentence on how far from the target."""
    if name == "forget_quality":
        if record.value >= SIGNIFICANCE:
            return "good", f"p ≥ {SIGNIFICANCE}: truth ratios cannot be told from the retain model's at this n"
        return "away", f"p < {SIGNIFICANCE}: truth ratios differ from the retain model's"
    distance = distance_from_target(name, record)
    if distance is None:
        return "open", "no target to measure it by"
    if distance == 0:
        return "good", "has reached its target"
    where = f"{number(distance)} {'above' if record.value > record.target else 'below'} the target"
    low, high = record.ci95 or (record.value, record.value)
    way = abs(before - record.target) if before is not None else 0.0
    if way and record.target != before:
        where += f"; {distance / way:.0%} of the distance before unlearning"
    if low <= record.target <= high:
        return "good", f"{where}; the interval holds the target"
    return ("good" if distance <= NEAR * (way or abs(record.target)) else "away"), where


def _state(name: str, record: MetricRecord, before: MetricRecord | None = None) -> str:
    """The state alone, for tables."""
    if record.value is None:
        return "open"
    return _verdict(name, record, None if before is None else before.value)[0]


def _details(name: str, record: MetricRecord) -> str:
    """What must stand beside the value."""
    details = record.details or {}
    if name == "forget_quality":
        details = {"D": details["statistic"], "log10 p": details["log10_p"], **details}
        details = {key: details[key] for key in ("D", "log10 p", "n", "m", "method")}
    plain = {key: value for key, value in details.items() if not isinstance(value, Mapping)}
    told = {metric_label(key): number(v) if isinstance(v, float) else v for key, v in plain.items()}
    return ", ".join(f"{key} = {value}" for key, value in told.items())


def _track(record: MetricRecord, before: float | None) -> str:
    low, high = record.range
    known = [record.value, *(v for v in (record.target, before) if v is not None), *(record.ci95 or ())]
    if low is None or high is None:
        room = 0.1 * (max(known) - min(known)) or abs(record.value) or 1.0
        low, high = (min(known) - room if low is None else low), (max(known) + room if high is None else high)
    return track(record.value, record.ci95, record.target, before, (low, high))


def _unmeasured(report: EvalReport) -> dict[str, list[str]]:
    """Why values are missing, and which."""
    reasons: dict[str, list[str]] = {}
    for label, block in (("", report.metrics), ("before", report.before), ("retain model", report.reference)):
        missing = {name: record for name, record in block.items() if record.not_measured is not None}
        if label and len(missing) == len(block) > 0:
            reasons.setdefault(_reason(next(iter(missing.values()))), []).append(f"everything of the {label}")
            continue
        for name, record in missing.items():
            if not label or name not in _flat(reasons):
                reasons.setdefault(_reason(record), []).append(f"{name} ({label})" if label else name)
    return reasons


def _reason(record: MetricRecord) -> str:
    return record.not_measured.removeprefix("not measured: ")


def _flat(groups: Mapping[str, Iterable[str]]) -> set[str]:
    return {name for names in groups.values() for name in names}


def _by_set(report: EvalReport) -> dict[str, dict[str, MetricRecord]]:
    """All metrics, those over several sets first."""
    groups: dict[str, dict[str, MetricRecord]] = {"": {}}
    for name, record in report.metrics.items():
        groups.setdefault(name.rpartition("/")[0], {})[name] = record
    return {set_name: metrics for set_name, metrics in groups.items() if metrics}


def _answers(report: EvalReport) -> list[dict[str, Any]]:
    """The items for which a model answered, each with the answers and numbers of all models."""
    labels = model_labels(report)
    rows = []
    for item in report.items:
        models = {name: values_of(item, name) for name in labels}
        if any(model.get("text") is not None for model in models.values()):
            answers = [
                {"model": name, "label": labels[name], "text": model.get("text"), "numbers": _numbers(model)}
                for name, model in models.items()
                if model
            ]
            rows.append({"item": item, "answers": answers})
    return rows


def _numbers(model: Mapping[str, Any]) -> dict[str, float]:
    return {name: model[name] for name in _ITEM_NUMBERS if model.get(name) is not None}


def _provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Of the other models only what differs: their versions and rules are nearly always the same."""
    return {
        key: {k: v for k, v in value.items() if v != provenance.get(k)} if key in ("before", "reference") else value
        for key, value in provenance.items()
    }
