"""From the items of up to three reports to the metrics of whole models: each a value, or the reason for none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.evaluation.metrics.items import SETS
from llm_unlearn.evaluation.metrics.summaries import SUMMARIES, Columns, Need, SummarySpec
from llm_unlearn.evaluation.records import NO_BEFORE, NO_REFERENCE, MetricRecord
from llm_unlearn.evaluation.statistics import interval, resampling_weights

if TYPE_CHECKING:
    from llm_unlearn.evaluation.report import EvalReport


def summaries(
    own: EvalReport, before: EvalReport | None = None, reference: EvalReport | None = None
) -> dict[str, MetricRecord]:
    """All `SUMMARIES` of the model that `own` reports.

    Args:
        own: the report of the model.
        before: that of the model before unlearning.
        reference: that of the retain model.
    """
    reports = {"own": own, "before": before, "reference": reference}
    by_row = {
        whose: {(item["set"], item["row"]): item for item in report.items}
        for whose, report in reports.items()
        if report is not None
    }
    rows = {}
    for item in own.items:
        rows.setdefault(item["set"], []).append(item)

    @cache
    def column(need: Need) -> list[Any]:
        whose, set_name, name = need
        items = (by_row[whose].get((set_name, item["row"]), {}) for item in rows.get(set_name, []))
        return [item.get(name) for item in items]

    @cache
    def weights(set_name: str) -> np.ndarray:
        clusters = [item.get("author") for item in rows[set_name]]
        # Each set its own draws: equal ones would tie the rows of sets of equal size to each other.
        drawn = None if None in clusters else clusters
        return resampling_weights(len(clusters), drawn, seed=SETS.index(set_name))

    def record(spec: SummarySpec) -> MetricRecord:
        reason = next(filter(None, (_why_missing(need, reports, column) for need in spec.needs)), None)
        variant = own.provenance.get("compat", "fixed")
        if reason is not None:
            return MetricRecord(None, None, 0, spec.higher_is_better, spec.range, None, reason, variant)
        sets = dict.fromkeys(set_name for _, set_name, _ in spec.needs)
        columns = Columns({need: column(need) for need in spec.needs}, {name: weights(name) for name in sets})
        estimates, details = spec.function(columns)
        value = float(estimates[0])
        if not np.isfinite(value):
            reason = "not measured: it is relative to a value of another model, which is 0"
            return MetricRecord(None, None, 0, spec.higher_is_better, spec.range, None, reason, variant)
        n = sum(any(v is not None for v in row) for name in sets for row in zip(
            *(column(need) for need in spec.needs if need[1] == name), strict=True
        ))  # fmt: skip
        return MetricRecord(
            value, interval(estimates), n, spec.higher_is_better, spec.range, variant=variant, details=details or None
        )

    return {name: record(spec) for name, spec in SUMMARIES.items()}


def _why_missing(need: Need, reports: Mapping[str, EvalReport | None], column) -> str | None:
    """Why a column cannot be used, or None where it can."""
    whose, set_name, name = need
    report = reports[whose]
    if report is None:
        return NO_REFERENCE if whose == "reference" else NO_BEFORE
    if name == "text_nll" and reports["before"] is None:
        return NO_BEFORE
    if name == "text_nll" and report.provenance.get("judge") != reports["before"].provenance.get("judge"):
        return "not measured: its texts were not judged by the model before unlearning; evaluate its adapter instead"
    if name == "text_nll" and whose == "own" and set(column((whose, set_name, "text"))) == {""}:
        # A model that answers nothing leaves nothing to judge, and has fluency 0.
        return None
    known = report.metrics.get(f"{set_name}/{name}")
    if known is not None and known.not_measured:
        return known.not_measured
    told = report.provenance.get("not_measured", {}).get(f"{set_name}/{name}")
    if told is not None:
        return told
    if any(value is not None for value in column(need)):
        return None
    whose_report = {"own": "the data", "before": "the report before unlearning", "reference": "the reference report"}
    if not any(item["set"] == set_name for item in report.items):
        mend = "; name one with `--holdout_split`" if set_name == "holdout" else ""
        return f"not measured: {whose_report[whose]} has no {set_name} set{mend}".replace(
            "the data has", "the data have"
        )
    return f"not measured: {whose_report[whose]} has no {name} on {set_name}; make it again with `--eval full`"
