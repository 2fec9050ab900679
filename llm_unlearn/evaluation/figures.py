"""Which plots the pages show: from reports to drawings, or to a sentence on why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_unlearn.evaluation.comparison import log10_p, shared_values
from llm_unlearn.evaluation.metrics.utility import PARTS
from llm_unlearn.evaluation.plots import (
    RUN_STYLES,
    STYLES,
    Point,
    Series,
    before_after,
    quality_utility_plane,
    truth_ratio_cdfs,
    utility_parts,
)
from llm_unlearn.evaluation.svg import Style, number

if TYPE_CHECKING:
    from llm_unlearn.evaluation.comparison import Comparison
    from llm_unlearn.evaluation.records import MetricRecord
    from llm_unlearn.evaluation.report import EvalReport


@dataclass(frozen=True)
class Plot:
    """A plot with its heading and caption; without `svg` the caption says why there is none."""

    title: str
    caption: str
    svg: str | None = None


def model_labels(report: EvalReport) -> dict[str, str]:
    """The models of a report that are there, in the order of its columns."""
    labels = {"before": "before"} if report.before else {}
    labels["after"] = "after" if report.before else "this model"
    if any(record.value is not None for record in report.reference.values()):
        labels["reference"] = "retain model"
    return labels


def truth_ratios(report: EvalReport) -> Plot:
    """Distributions of the truth ratio on the forget set, with the gap that forget quality tests."""
    title = "Truth ratio on the forget set"
    labels = model_labels(report)
    items = [item for item in report.items if item["set"] == "forget"]
    found = {name: _positive(values_of(item, name).get("truth_ratio") for item in items) for name in labels}
    # The two whose gap is forget quality stand first and last.
    series = [
        Series(labels[name], STYLES[name], found[name]) for name in ("after", "before", "reference") if found.get(name)
    ]
    if not found["after"]:
        return Plot(title, "Not drawn: the forget rows carry no truth ratio; it needs perturbed answers in the data.")
    gap = bool(found.get("reference"))
    caption = (
        "R compares the wrong answers' probability with the true one's, per item. D, the largest gap between the "
        "unlearned and the retain model, is what forget quality tests."
        if gap
        else "R compares the wrong answers' probability with the true one's, per item. The gap D is not drawn: the "
        "retain model's truth ratios are not known."
    )
    left_out = len(items) - min(len(one.values) for one in series)
    caption += f" Without a finite ratio and left out: {left_out} items." if left_out else ""
    return Plot(title, caption, truth_ratio_cdfs(series, gap))


def kept_parts(report: EvalReport) -> Plot:
    """The nine parts of model utility, before, after and of the retain model."""
    title = "What was kept: the parts of model utility"
    labels = model_labels(report)
    blocks = {"before": report.before, "after": report.metrics, "reference": report.reference}
    parts = {
        part: {name: value for name in labels if (value := value_in(blocks[name], part)) is not None} for part in PARTS
    }
    missing = [part for part, values in parts.items() if "after" not in values]
    if len(missing) == len(PARTS):
        return Plot(title, "Not drawn: none of the nine parts of model utility was measured.")
    mean = {name: value for name in labels if (value := value_in(blocks[name], "model_utility")) is not None}
    caption = "Model utility is the harmonic mean of the nine: one part near zero pulls it to zero."
    if missing:
        caption += f" Not measured: {', '.join(missing)}."
    return Plot(title, caption, utility_parts({part: v for part, v in parts.items() if v}, mean, labels))


def per_item(report: EvalReport) -> Plot:
    """The probability of every forget answer, before against after."""
    title = "Every forget item, before and after"
    points = []
    for item in report.items:
        values = [values_of(item, name).get("probability") for name in ("before", "after")]
        if item["set"] == "forget" and None not in values:
            told = f"row {item['row']}: {number(values[0])} → {number(values[1])}\n{item['question']}"
            points.append((*values, told))
    if not points:
        return Plot(title, "Not drawn: the model before unlearning was not evaluated.")
    fell = sum(after < before for before, after, _ in points)
    caption = (
        f"Probability of the true answer: it fell on {fell} of {len(points)} items. Hover over a point for its row."
    )
    return Plot(title, caption, before_after(points, "probability", value_in(report.reference, "forget/probability")))


def plane(report: EvalReport) -> Plot:
    """Forget quality against model utility, of the models of one report."""
    labels = model_labels(report)
    own = _point(labels["after"], STYLES["after"], report.metrics)
    before = _point("before", STYLES["before"], report.before)
    points = [point for point in (before, own) if point] if own else []
    return _plane_plot(points, value_in(report.reference, "model_utility"))


def plane_of_runs(comparison: Comparison) -> Plot:
    """Forget quality against model utility, a point per run, and the model before unlearning where all share it."""
    reports = list(comparison.runs.values())
    points = [
        point
        for (name, report), style in zip(comparison.runs.items(), run_styles(len(reports)), strict=True)
        if (point := _point(name, style, report.metrics))
    ]
    if points and shared_values(reports, "before"):
        before = _point("before", STYLES["before"], reports[0].before)
        points += [before] if before else []
    return _plane_plot(points, shared_values(reports, "reference").get("model_utility"))


def _plane_plot(points: Sequence[Point], retain_utility: float | None) -> Plot:
    title = "Forget quality against model utility"
    if not points:
        return Plot(title, "Not drawn: it needs both forget quality, hence a reference report, and model utility.")
    caption = (
        "Up and to the right is better. Forget quality compares with the retain model, whose own is 1 by definition; "
        "above the line of p = .05 the two cannot be told apart."
    )
    return Plot(title, caption, quality_utility_plane(points, retain_utility))


def truth_ratios_of_runs(comparison: Comparison) -> Plot:
    """Distributions of the truth ratio of all runs, and of the models they share."""
    title = "Truth ratio on the forget set"
    reports = list(comparison.runs.values())
    entries = [
        (name, style, report, "after")
        for (name, report), style in zip(comparison.runs.items(), run_styles(len(reports)), strict=True)
    ]
    entries += [
        (label, STYLES[block], reports[0], block)
        for block, label in (("before", "before"), ("reference", "retain model"))
        if shared_values(reports, block)
    ]
    series = []
    for label, style, report, model in entries:
        items = (item for item in report.items if item["set"] == "forget")
        values = _positive(values_of(item, model).get("truth_ratio") for item in items)
        series += [Series(label, style, values)] if values else []
    if not series:
        return Plot(title, "Not drawn: no run carries truth ratios; they need perturbed answers in the data.")
    return Plot(title, "The nearer to the retain model's line, the higher forget quality.", truth_ratio_cdfs(series))


def value_in(block: Mapping[str, MetricRecord], name: str) -> float | None:
    """A metric's value; None where it is unknown or was not measured."""
    return block[name].value if name in block else None


def values_of(item: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """What an item says of one of the models in `STYLES`."""
    return item if model == "after" else item.get(model, {})


def _point(label: str, style: Style, block: Mapping[str, MetricRecord]) -> Point | None:
    quality, utility = log10_p(block.get("forget_quality")), value_in(block, "model_utility")
    return None if quality is None or utility is None else Point(label, style, utility, quality)


def _positive(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and value > 0]


def run_styles(count: int) -> list[Style]:
    """One style per run; beyond the sixth they repeat."""
    return [RUN_STYLES[i % len(RUN_STYLES)] for i in range(count)]
