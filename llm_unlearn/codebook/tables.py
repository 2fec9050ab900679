"""Codes, requests and plans as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llm_unlearn.evaluation.svg import number

if TYPE_CHECKING:
    from llm_unlearn.codebook.inspection import Inspection
    from llm_unlearn.codebook.registry import DeletionRegistry
    from llm_unlearn.codebook.unlearner import DeletionPlan


def codes_table(inspection: Inspection, rows: int) -> Table:
    """The first codes of an inspection, with their commonest tokens."""
    hidden = len(inspection.codes) - rows
    left_out = inspection.left_out + max(hidden, 0)
    caption = f"{left_out} more codes are in use or deleted." if left_out else None
    table = _table("code", "R", "target", "control", "state", "commonest tokens", caption=caption)
    for code in inspection.codes[:rows]:
        flags = {"enriched": code.enriched, "purged": code.purged, "dead": code.dead}
        states = [name for name, is_so in flags.items() if is_so]
        states += [f"deleted for {request}" for request in code.requests]
        table.add_row(
            str(code.code),
            "–" if code.enrichment is None else f"{code.enrichment:+.2f}",
            _times(code.target_tokens, code.target_share),
            _times(code.control_tokens, code.control_share),
            Text(", ".join(states)),
            Text(" ".join(f"{token}×{times}" for token, times in code.commonest)),
        )
    return table


def requests_table(registry: DeletionRegistry) -> Table:
    """All requests, in the order they came; where one is gated, with what opens its gate."""
    in_force = {record.id for record in registry.in_force}
    gated = any(record.mode == "gated" for record in registry)
    caption = "A gate opens where a text has used its triggers as often as the threshold says." if gated else None
    gate_columns = ("triggers", "threshold") if gated else ()
    table = _table("request", "status", "mode", "codes", *gate_columns, "created", caption=caption)
    for record in registry:
        status = "purged, in force" if record.status == "purged" and record.id in in_force else record.status
        gate = ("–", "–")
        if record.threshold is not None:
            gate = (str(len(record.triggers)), f"{record.threshold:g}")
        codes = str(len(record.codes))
        table.add_row(Text(record.id), status, record.mode, codes, *(gate if gated else ()), record.created or "–")
    return table


def plan_table(plan: DeletionPlan, rows: int) -> Table:
    """The codes of a plan, the most enriched first, with the lowest level that has them."""
    grounds = plan.selection.grounds(plan.codes(len(plan.levels) - 1))
    table = _table("code", "level", "R", "p", "q", "target", "control")
    counts = {"target": plan.selection.target.n_tokens, "control": plan.selection.control.n_tokens}
    for row in sorted(grounds, key=lambda row: -row["enrichment"])[:rows]:
        table.add_row(
            str(row["code"]),
            str(plan.levels.index(row["list_length"])),
            f"{row['enrichment']:+.2f}",
            number(row["p"]),
            number(row["q"]),
            *(_times(row[name], row[name] / total) for name, total in counts.items()),
        )
    return table


def plan_line(plan: DeletionPlan) -> str:
    """How much a plan would delete."""
    sizes = [f"{size} at level {level}" for level, size in enumerate(plan.selection.sizes)]
    return f"Request {plan.id!r} would delete of {plan.selection.target.num_codes} codes {', '.join(sizes)}."


def gate_line(plan: DeletionPlan) -> str:
    """What would open a plan's gate, and how many texts would."""
    gate = plan.gate
    if gate.objection:
        return f"Mode gated is not to be had: {gate.objection}"
    kept = "" if gate.retain_share is None else f" and {gate.retain_share:.1%} of those to keep"
    return (
        f"Mode gated: {len(gate.triggers)} triggers, used at least {gate.threshold:g}× in {gate.forget_share:.0%} "
        f"of the texts to forget{kept}."
    )


def curve_table(plan: DeletionPlan) -> Table:
    """What each strength does in each mode: probabilities of the answers, and the rise of the retain loss."""
    start = next(point for point in plan.curve if point.mode == "none")
    table = _table(
        "mode", "level", "codes", "chosen", "p(forget)", "p(retain)", "retain loss", title="Mean probability of answers"
    )
    for point in plan.curve:
        mode = "nothing" if point is start else point.mode
        rise = "–"
        if point.retain_loss is not None and start.retain_loss:
            rise = f"{point.retain_loss / start.retain_loss - 1:+.1%}"
        table.add_row(
            mode,
            "–" if point is start else str(point.level),
            str(point.n_codes),
            "" if point is start else point.chosen,
            number(point.forget_probability),
            "–" if point.retain_probability is None else number(point.retain_probability),
            "" if point is start else rise,
        )
    return table


_WORDS = ("request", "status", "mode", "chosen", "created", "state", "commonest tokens")


def _table(*columns: str, caption: str | None = None, title: str | None = None) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title, caption_justify="left")
    table.caption = None if caption is None else Text(caption)
    for column in columns:
        is_text = column in _WORDS
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table


def _times(tokens: int, share: float) -> str:
    return f"{tokens} ({100 * share:.2g} %)"
