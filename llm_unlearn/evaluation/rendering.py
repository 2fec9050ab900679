"""A report as people read it: tables for the terminal, Markdown for a page or a model card.

`EvalReport` has a method for each whole piece; what is shown, what is left out and how numbers look is decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from llm_unlearn.evaluation.comparison import settings_beside
from llm_unlearn.evaluation.svg import number

if TYPE_CHECKING:
    from rich.table import Table

    from llm_unlearn.evaluation.report import EvalReport, MetricRecord

EXAMPLES_SHOWN = 5
"""How many answers a page or a table shows."""

IN_TERMINAL = (
    "forget/extraction_strength",
    "forget/exact_memorization",
    "forget/paraphrase_probability",
    "forget/probability",
    "forget/truth_ratio",
    "forget/rouge_l_recall",
    "forget/value_recall",
    "retain/probability",
    "retain/rouge_l_recall",
    "retain/value_recall",
    "real_authors/rouge_l_recall",
    "world_facts/rouge_l_recall",
    "model_utility",
    "mem",
    "priv",
    "privleak",
    "overall_offline",
    "forget_quality",
    "forget_quality_ks",
)
"""What fits a screen; pages hold all. Forget quality stands last: it is a number of parity with the retain model."""

_OTHER_MODELS = ("before", "reference")
_ANSWERS_TITLE = "Answers to questions about what was to be forgotten"


def metrics_table(report: EvalReport) -> Table:
    """The metrics for the terminal, as `EvalReport.table` describes it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    more = sum(record.value is not None for name, record in report.metrics.items() if name not in IN_TERMINAL)
    elsewhere = [f"{more} more metrics: see report.md or report.html."] if more else []
    notes = Text("\n".join([*_notes(report, IN_TERMINAL), *elsewhere]))
    table = Table(
        title="Evaluation", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption=notes, caption_justify="left"
    )
    header, *rows = _metric_rows(report, for_terminal=True)
    for column in header:
        is_name = column == "metric"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=column != "retain model")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def answers_table(report: EvalReport, k: int) -> Table:
    """`k` answers for the terminal, as `EvalReport.answers_table` describes it."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=_ANSWERS_TITLE, show_lines=True)
    header, *rows = _answer_rows(report, k)
    for column in header:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def metrics_markdown(report: EvalReport) -> str:
    """The metrics with their notes, as `EvalReport.metrics_markdown` describes it; fit to be published."""
    parts = [_markdown_table(_metric_rows(report))]
    notes = _notes(report)
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    parts.append(
        "Square brackets are bootstrap 95 % intervals over the items. ↓: lower is better, ↑: higher is better; the "
        "target is the retain model's value on the forget set and the value before unlearning elsewhere."
    )
    return "\n\n".join(parts)


def page_markdown(report: EvalReport) -> str:
    """The whole page, as `EvalReport.to_markdown` describes it; it repeats answers, so it stays with the run."""
    parts = ["# Evaluation report", metrics_markdown(report)]
    if report.has_answers:
        parts += [f"## {_ANSWERS_TITLE}", _markdown_table(_answer_rows(report, EXAMPLES_SHOWN))]
    # Of the other models only what differs: their versions and rules are nearly always the same.
    provenance = {
        key: {k: v for k, v in value.items() if v != report.provenance.get(k)} if key in _OTHER_MODELS else value
        for key, value in report.provenance.items()
    }
    parts += ["## Provenance", "\n".join(_markdown_list(provenance))]
    return "\n\n".join(parts) + "\n"


def _metric_rows(report: EvalReport, for_terminal: bool = False) -> list[list[str]]:
    """Header and rows of the metric table: without a column of the retain model where nothing is known of it, and
    without metrics that nobody measured; the notes say why.

    For a terminal, numbers have three decimals and no intervals.
    """
    number = _terminal_number if for_terminal else _number
    with_reference = any(record.value is not None for record in report.reference.values())
    header = ["metric", *(["before"] if report.before else []), "after" if report.before else "value"]
    header += [*(["retain model"] if with_reference else []), "target", "n", *([] if for_terminal else ["variant"])]
    rows = []
    names = [name for name in IN_TERMINAL if name in report.metrics] if for_terminal else report.metrics
    for name in names:
        record = report.metrics[name]
        others = [block[name] for block in (report.before, report.reference) if block]
        if all(other.value is None for other in (record, *others)):
            continue
        arrow = {True: " ↑", False: " ↓", None: ""}[record.higher_is_better]
        cells = [f"{name}{arrow}"]
        if report.before:
            cells.append(number(report.before[name].value))
        cells.append(number(record.value) if for_terminal else _with_interval(record))
        if with_reference:
            cells.append(number(report.reference[name].value))
        cells += ["-" if record.target is None else number(record.target), str(record.n)]
        rows.append([*cells, *([] if for_terminal else [record.variant])])
    return [header, *rows]


def _notes(report: EvalReport, shown: Collection[str] | None = None) -> list[str]:
    """What to know beside the numbers.

    Each reason for a missing value stands once, with the metrics it concerns where it does not concern all.

    Args:
        report: the report.
        shown: the metrics to speak of; None for all.
    """
    notes: dict[str, str] = {}
    for label, block in (("", report.metrics), ("before: ", report.before), ("retain model: ", report.reference)):
        block = {name: record for name, record in block.items() if shown is None or name in shown}
        for reason in dict.fromkeys(record.not_measured for record in block.values()):
            names = [name for name, record in block.items() if record.not_measured == reason]
            concerned = "" if len(names) == len(block) else f"{', '.join(names)}: "
            if reason is not None:
                notes.setdefault(reason, f"{label}{concerned}{reason}")
    left_out: dict[int, list[str]] = {}
    for name, record in report.metrics.items():
        if record.details and "left_out" in record.details and (shown is None or name in shown):
            left_out.setdefault(record.details["left_out"], []).append(name)
    counts = [f"{', '.join(names)}: {n} rows left out, which lack what it needs" for n, names in left_out.items()]
    curtailed = [
        f"{set_name}: {count} {what}"
        for set_name, of_set in report.provenance.get("curtailed", {}).items()
        for what, count in of_set.items()
    ]
    return [*notes.values(), *counts, *curtailed, *settings_beside(report), *run_notes(report)]


def run_notes(report: EvalReport) -> list[str]:
    """How the run that is reported on found its pairs, and how its refinement judged and ended."""
    run = report.provenance.get("run") or {}
    pairing, refinement = run.get("pairing"), run.get("refinement")
    notes = []
    if pairing:
        notes.append(
            f"Each forget row stood beside the nearest of {pairing['pool_rows']} rows ({pairing['pool']}), by the "
            f"encoder {pairing['encoder']}."
        )
    if refinement:
        encoder = refinement["encoder"]
        compared = f", BERTScore by the encoder {encoder} (F1 {refinement['bert_f1']:.3f})" if encoder else ""
        limits = refinement["thresholds"] or {}
        shown = {"ma": "MA", "el": "EL", "rouge_l": "ROUGE-L"}
        told = ", ".join(f"{name} {limits[key]:.3f}" for key, name in shown.items() if limits.get(key) is not None)
        source = f" Thresholds: {told} ({limits['source']})." if told else ""
        notes.append(f"Refinement by the judge {refinement['judge']}{compared}: {refinement['outcome']}.{source}")
    return notes


def _answer_rows(report: EvalReport, k: int) -> list[list[str]]:
    answered = [item for item in report.items if item["set"] == "forget" and item["text"] is not None]
    has = {name: any(name in item for item in answered) for name in _OTHER_MODELS}
    header = ["question", "true answer", *(["before"] if has["before"] else [])]
    header += ["after" if has["before"] else "answer", *(["retain model"] if has["reference"] else [])]
    rows = []
    for position in _evenly(len(answered), k):
        item = answered[position]
        models = [*([item["before"]] if has["before"] else []), item]
        models += [item["reference"]] if has["reference"] else []
        texts = ["not measured" if model["text"] is None else model["text"] for model in models]
        rows.append([item["question"], item["answer"], *texts])
    return [header, *rows]


def _number(value: float | None) -> str:
    return "not measured" if value is None else number(value)


def _terminal_number(value: float | None) -> str:
    return "-" if value is None else number(value)


def _with_interval(record: MetricRecord) -> str:
    value = _number(record.value)
    if record.ci95 is not None:
        low, high = record.ci95
        value += f" [{_number(low)}, {_number(high)}]"
    # An AUC hides the few items that are recognised with certainty.
    tail = (record.details or {}).get("tpr_at_1_percent_fpr")
    return value if tail is None else f"{value}; TPR at 1 % FPR {_number(tail)}"


def _evenly(total: int, k: int) -> list[int]:
    """At most `k` numbers below `total`, evenly spread."""
    k = min(k, total)
    return [i * total // k for i in range(k)]


def _markdown_table(rows: list[list[str]]) -> str:
    header, *body = [[" ".join(cell.replace("|", "\\|").replace("<", "&lt;").split()) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_list(entries: Mapping[str, Any], depth: int = 0) -> list[str]:
    lines = []
    for key, value in entries.items():
        nested = isinstance(value, Mapping)
        lines.append(f"{'  ' * depth}- {key}:" + ("" if nested else f" {value}"))
        if nested:
            lines += _markdown_list(value, depth + 1)
    return lines
