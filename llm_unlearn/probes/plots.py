"""What a probe found, drawn as inline SVG: pure functions from records to a string, in the style of `evaluation.plots`.

Facts that the base model did not know are in no plot: nothing of them can be forgotten.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from llm_unlearn.evaluation.plots import RUN_STYLES
from llm_unlearn.evaluation.svg import (
    BELOW,
    LEFT,
    PANEL,
    RIGHT,
    Scale,
    Style,
    axes,
    coloured,
    cut,
    legend,
    levels,
    line,
    marker,
    number,
    picture,
    text,
)
from llm_unlearn.probes.records import OUTCOMES, BucketRow, Estimate, FactRow

_LOWEST_F = -1.0
# Further up than twice the old probability, and further down than a millionth of it, nobody needs to tell apart.
_LEAST_LEFT, _MOST_LEFT = 1e-6, 10.0

CASES = {
    (True, True): "gone in both",
    (True, False): "hidden: still answered",
    (False, True): "apparent: still probable",
    (False, False): "gone in neither",
}
"""What probabilities and generated answers say of a fact, together."""


@dataclass(frozen=True)
class CountScale:
    """From counts to places on an axis of ``log10(1 + count)``, which has a place for 0; used as a `svg.Scale`.

    Attributes:
        lowest, highest: ends of the axis, as counts.
        start, end: where they stand.
    """

    lowest: float
    highest: float
    start: float
    end: float

    def __call__(self, count: float) -> float:
        """Where a count stands."""
        low, high = math.log10(1 + self.lowest), math.log10(1 + self.highest)
        return self.start + (math.log10(1 + count) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round counts on the axis, at most some eight of them."""
        decades = range(math.ceil(math.log10(1 + self.highest)) + 1)
        wide = len(decades) > 4
        marks = [0.0, *(factor * 10.0**decade for decade in decades for factor in ((1,) if wide else (1, 3)))]
        return [mark for mark in marks if self.lowest <= mark <= self.highest]


def count_against_forgetting(rows: Sequence[FactRow], outcome: str, slope: Estimate, label: str) -> str:
    """Every known fact as a point: its count across, on a scale of ``log10(1 + count)``, its F upwards.

    F below -1, where an answer became more than twice as probable, stands at the lower edge. The line is that of least
    squares, where a slope was measured.

    Args:
        rows: facts with a bucket, known to the base.
        outcome: a name of `OUTCOMES`.
        slope: change of F per tenfold count.
        label: what was counted.

    Raises:
        ValueError: no row has a value.
    """
    drawn = [row for row in rows if row.forgetting(outcome) is not None]
    if not drawn:
        raise ValueError("There is no known fact to draw: give at least one with a value of forgetting.")
    styles = bucket_styles([row.bucket for row in drawn])
    keys, top = legend([(f"{name} count" if name.isalpha() else name, style) for name, style in styles.items()])
    counts = [row.count for row in drawn]
    low, high = min(counts), max(counts)
    # A margin of 4 % on either side, so that no point lies on an axis.
    room = 0.04 * max(math.log10(1 + high) - math.log10(1 + low), 0.5)
    x = CountScale((1 + low) * 10**-room - 1, (1 + high) * 10**room - 1, LEFT, RIGHT)
    values = [max(row.forgetting(outcome), _LOWEST_F) for row in drawn]
    y = Scale(min(-0.05, 1.05 * min(values)), 1.05, top + PANEL, top)
    body = [keys, axes(x, y, cut(label, 52), f"forgetting F, {OUTCOMES[outcome]}")]
    body.append(line("rule", LEFT, y(0), RIGHT, y(0)))
    for row, value in zip(drawn, values, strict=True):
        title = f"{row.subject} → {row.object}: count {row.count:g}, F {number(row.forgetting(outcome))}"
        mark = marker(styles[row.bucket].marker, x(row.count) + _jitter(row.id), y(value), 4, title)
        body.append(coloured(styles[row.bucket], mark, kind="faint"))
    told = f"Forgetting ({OUTCOMES[outcome]}) against {label}, {len(drawn)} known facts"
    if slope.value is not None:
        body.append(_fitted(drawn, outcome, slope.value, x, y))
        told += f"; change of F per tenfold count {number(slope.value)}"
    return picture(y.start + BELOW, body, told)


def forgetting_by_bucket(buckets: Sequence[BucketRow]) -> str:
    """Mean F of each bucket with its interval: a bar for the answer likelihood, one for generated answers.

    Raises:
        ValueError: no bucket has a value.
    """
    shown = [bucket for bucket in buckets if any(one.value is not None for one in bucket.forgetting.values())]
    if not shown:
        raise ValueError("There is no bucket to draw: none has a known fact.")
    styles = dict(zip(OUTCOMES, RUN_STYLES, strict=False))
    keys, top = legend([(OUTCOMES[outcome], style) for outcome, style in styles.items()])
    ends = [end for bucket in shown for one in bucket.forgetting.values() for end in (one.ci95 or (one.value or 0.0,))]
    lowest = max(_LOWEST_F, min([0.0, *ends]))
    y = Scale(1.05 * lowest, 1.05, top + PANEL - 40, top)
    body = [keys, levels(y, "mean forgetting F")]
    share = (RIGHT - LEFT) / len(shown)
    width = min(46.0, 0.32 * share)
    for place, bucket in enumerate(shown):
        middle = LEFT + (place + 0.5) * share
        for side, (outcome, style) in zip((-1, 1), styles.items(), strict=True):
            one = bucket.forgetting[outcome]
            if one.value is not None:
                left = middle + side * (width / 2 + 1) - width / 2
                title = f"{bucket.name}, {OUTCOMES[outcome]}: F {number(one.value)}"
                body.append(coloured(style, _bar(left, width, one, y, title), kind="bar"))
        body.append(text(middle, y.start + 17, cut(bucket.name, int(share / 7.4)), "strong", "middle"))
        body.append(text(middle, y.start + 34, f"n = {bucket.n_known}", "tick", "middle"))
    body.append(line("axis", LEFT, y(0), RIGHT, y(0)))
    told = "; ".join(
        f"{bucket.name}: {', '.join(f'{OUTCOMES[name]} {_known(one)}' for name, one in bucket.forgetting.items())}"
        for bucket in shown
    )
    return picture(y.start + 44, body, f"Mean forgetting by bucket. {told}")


def probability_against_generation(rows: Sequence[FactRow], gone_p1: float, gone_recall: float) -> str:
    """Every known fact as a point: the share of its probability that is left across, its generated answers upwards.

    Left of the upright line probability says that a fact is gone (unless its True/False statements are still told
    apart), below the level one generated answers do. What is left below 1e-6 or above 10 stands at the edge.

    Args:
        rows: facts with a bucket, known to the base.
        gone_p1: share of P1 below which a fact is gone.
        gone_recall: generation score below which it is.

    Raises:
        ValueError: there is no such row.
    """
    drawn = [row for row in rows if row.before.p1 > 0]
    if not drawn:
        raise ValueError("There is no known fact to draw: give at least one.")
    styles = dict(zip(CASES, RUN_STYLES, strict=False))
    cases = [(row.prob_forgotten, row.gen_forgotten) for row in drawn]
    keys, top = legend([(f"{name} ({cases.count(case)})", styles[case]) for case, name in CASES.items()])
    left = [max(row.after.p1 / row.before.p1, _LEAST_LEFT) for row in drawn]
    lowest = min(math.log10(min(left)), math.log10(gone_p1) - 1)
    x = Scale(lowest - 0.15, math.log10(_MOST_LEFT), LEFT, RIGHT, log=True)
    y = Scale(-0.05, 1.05, top + PANEL, top)
    body = [keys, axes(x, y, "P1 after / P1 before (log scale)", "generation score after")]
    body.append(line("rule", x(gone_p1), y.start, x(gone_p1), y.end))
    body.append(line("rule", LEFT, y(gone_recall), RIGHT, y(gone_recall)))
    for row, share, case in zip(drawn, left, cases, strict=True):
        title = f"{row.subject} → {row.object}: P1 {number(row.before.p1)} to {number(row.after.p1)}"
        shift = _jitter(row.id)
        mark = marker(styles[case].marker, x(share), y(row.after.generation) + shift, 4, title)
        body.append(coloured(styles[case], mark, kind="faint"))
    told = ", ".join(f"{name} {cases.count(case)}" for case, name in CASES.items())
    return picture(y.start + BELOW, body, f"Probability against generated answers, {len(drawn)} known facts: {told}")


def bucket_styles(names: Sequence[str | None]) -> dict[str, Style]:
    """A style per bucket, in the order in which they are; from the seventh on they repeat."""
    present = list(dict.fromkeys(name for name in names if name is not None))
    ordered = [name for name in ("zero", "low", "medium", "high") if name in present]
    ordered += [name for name in present if name not in ordered]
    return {name: RUN_STYLES[place % len(RUN_STYLES)] for place, name in enumerate(ordered)}


def _fitted(rows: Sequence[FactRow], outcome: str, slope: float, x: CountScale, y: Scale) -> str:
    """The line of least squares through the means, as far as the counts and the frame go."""
    mean_x = sum(row.x for row in rows) / len(rows)
    mean_f = sum(row.forgetting(outcome) for row in rows) / len(rows)
    low, high = min(row.x for row in rows), max(row.x for row in rows)
    if slope:
        cuts = sorted(mean_x + (end - mean_f) / slope for end in (y.low, y.high))
        low, high = max(low, cuts[0]), min(high, cuts[1])
    if not low < high:
        return ""
    ends = [(x(10**at - 1), y(mean_f + slope * (at - mean_x))) for at in (low, high)]
    return f'<g class="series" style="color:var(--ink,#1c2330)">{line("line", *ends[0], *ends[1], "6 4")}</g>'


def _bar(left: float, width: float, one: Estimate, y: Scale, title: str) -> str:
    top, bottom = sorted((y(one.value), y(0)))
    bar = (
        f'<rect class="mark" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{bottom - top:.1f}">'
        f"<title>{escape(title)}</title></rect>"
    )
    if one.ci95 is None:
        return bar
    middle = left + width / 2
    low, high = (y(end) for end in one.ci95)
    ends = "".join(line("gap", middle - 5, end, middle + 5, end) for end in (low, high))
    return bar + line("gap", middle, low, middle, high) + ends


def _jitter(name: str) -> float:
    """Up to 3 units to either side, always the same for a fact: many have equal counts or scores."""
    return zlib.crc32(name.encode()) % 61 / 10 - 3


def _known(one: Estimate) -> str:
    return "not measured" if one.value is None else number(one.value)
