"""Drops of CodeUnlearn as tables: for the terminal, and as Markdown for a page. Raw scores stand beside each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llm_unlearn.codebook.drop import Deletion, DropCell, is_nested
from llm_unlearn.evaluation.svg import number

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEADER = ("topic", "metric", "texts", "zero-shot", "codebook", "deleted", "NI", "drop")
_CURVE = ("topic", "S'", "chosen", "codes", "removed")
_WORDS = ("topic", "metric", "texts", "chosen")
_EXPLANATION = (
    "NI = (deleted - zero-shot) / (codebook - zero-shot); drop = (NI - 1) * 100 %, below -100 % worse than before "
    "training. target: held-out texts on the topic, control: texts on other things."
)


def drop_table(deletions: Sequence[Deletion], title: str | None = None) -> Table:
    """One row per topic, metric and set of texts; what is not measured, and why, stands below."""
    return _table(_HEADER, _drop_rows(deletions), title, "\n".join(_notes(deletions)))


def curve_table(deletions: Sequence[Deletion], metrics: Sequence[str], title: str | None = None) -> Table:
    """One row per topic and strength, with the drops of `metrics` on target and control."""
    metrics = _scored(deletions, metrics)
    return _table((*_CURVE, *_curve_columns(metrics)), _curve_rows(deletions, metrics), title, "")


def drop_markdown(deletions: Sequence[Deletion], curve: Sequence[Deletion], metrics: Sequence[str]) -> str:
    """A page: drops with raw scores, the same for all strengths, and the notes.

    Args:
        deletions: what the first table shows, such as the strongest deletion of each topic.
        curve: all strengths, and random codes.
        metrics: of which the second table shows drops.
    """
    parts = ["# Drop of the normalised improvement", _markdown(_HEADER, _drop_rows(deletions)), _EXPLANATION]
    notes = _notes(deletions)
    parts += ["\n".join(f"- {note}" for note in notes)] if notes else []
    metrics = _scored(curve, metrics)
    parts += ["## Strengths", _markdown((*_CURVE, *_curve_columns(metrics)), _curve_rows(curve, metrics))]
    return "\n\n".join(parts) + "\n"


def summary_lines(deletions: Sequence[Deletion], curve: Sequence[Deletion], metrics: Sequence[str]) -> list[str]:
    """In words: on how many topics the target falls more than the control, and how many codes went.

    Args:
        deletions: one per topic, such as the strongest.
        curve: all strengths, from which the range of removed shares is taken.
        metrics: one line each.
    """
    lines = []
    for metric in _scored(deletions, metrics):
        verdicts = [deletion.falls_more(metric) for deletion in deletions]
        unknown = verdicts.count(None)
        lines.append(
            f"{metric}: the drop on the target is deeper than on the control for {verdicts.count(True)} of "
            f"{len(verdicts)} topics" + (f", not measured for {unknown}." if unknown else ".")
        )
    selected = [deletion for deletion in curve if deletion.chosen == "selected"]
    if selected:
        ends = [pick(selected, key=lambda deletion: deletion.n_codes) for pick in (min, max)]
        sizes, shares = (str(one.n_codes) for one in ends), (_percent(one.share) for one in ends)
        lines.append(f"Removed: {' to '.join(sizes)} codes, {' to '.join(shares)} of all.")
        by_topic = [[one.n_codes for one in selected if one.topic == deletion.topic] for deletion in deletions]
        lines.append(
            f"No longer S' deletes fewer codes than a shorter one for {sum(map(is_nested, by_topic))} of "
            f"{len(by_topic)} topics."
        )
    return lines


def _drop_rows(deletions: Sequence[Deletion]) -> list[list[str]]:
    return [
        [deletion.topic, cell.metric, cell.texts, *map(_raw, (cell.zero_shot, cell.codebook, cell.deleted))]
        + ["–" if cell.ni is None else f"{cell.ni:.2f}", _drop(cell)]
        for deletion in deletions
        for cell in deletion.cells
        if cell.has_scores
    ]


def _scored(deletions: Sequence[Deletion], metrics: Sequence[str]) -> list[str]:
    """Those of the metrics of which there is any score; notes say why there is none of the others."""
    scored = {cell.metric for deletion in deletions for cell in deletion.cells if cell.has_scores}
    return [metric for metric in metrics if metric in scored]


def _curve_columns(metrics: Sequence[str]) -> list[str]:
    return [f"{metric} {texts}" for metric in metrics for texts in ("target", "control")]


def _curve_rows(deletions: Sequence[Deletion], metrics: Sequence[str]) -> list[list[str]]:
    return [
        [deletion.topic, str(deletion.list_length), deletion.chosen, str(deletion.n_codes), _percent(deletion.share)]
        + [_drop(deletion.cell(metric, texts)) for metric in metrics for texts in ("target", "control")]
        for deletion in deletions
    ]


def _notes(deletions: Sequence[Deletion]) -> list[str]:
    """Each reason once, with what it concerns where it does not concern a metric everywhere."""
    cells = [(deletion.topic, cell) for deletion in deletions for cell in deletion.cells]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for topic, cell in cells:
        if cell.not_measured:
            by_reason.setdefault((cell.metric, cell.not_measured), []).append(f"{topic} ({cell.texts})")
    totals = {metric: sum(cell.metric == metric for _, cell in cells) for metric, _ in by_reason}
    return [
        f"{metric}{'' if len(where) == totals[metric] else ', ' + ', '.join(where)}: not measured, {reason}."
        for (metric, reason), where in by_reason.items()
    ]


def _raw(score: float | None) -> str:
    return "–" if score is None else number(score)


def _drop(cell: DropCell) -> str:
    return "not measured" if cell.drop is None else f"{cell.drop + 0.0:+.1f} %"


def _percent(share: float) -> str:
    return f"{100 * share:.3f} %"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None, caption: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    table.caption = Text(caption) if caption else None
    for column in columns:
        table.add_column(column, justify="left" if column in _WORDS else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [[" ".join(cell.replace("|", "\\|").replace("<", "&lt;").split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(columns), ["---"] * len(columns), *body])
