"""Plots of an evaluation as inline SVG: pure functions from numbers to a string."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm_unlearn.evaluation.svg import (
    BELOW,
    LEFT,
    LETTER,
    PANEL,
    RIGHT,
    WIDTH,
    Scale,
    Style,
    axes,
    box,
    coloured,
    cut,
    legend,
    line,
    marker,
    number,
    picture,
    place_label,
    text,
    tick_label,
)

STYLES = {
    "before": Style("--before", "#b34700", "square", "7 4"),
    "after": Style("--after", "#0b63b0", "circle"),
    "reference": Style("--reference", "#00755a", "diamond", "2 3"),
}
"""The three models of a report."""

RUN_STYLES = tuple(
    Style(f"--run-{i}", colour, shape, dash)
    for i, (colour, shape, dash) in enumerate(
        (
            ("#0b63b0", "circle", ""),
            ("#a8328a", "triangle", "9 4"),
            ("#8a6100", "cross", "5 3 1 3"),
            ("#5b4bb5", "square", "12 3"),
            ("#b5303a", "down", "3 3"),
            ("#3d6b1f", "plus", "9 3 2 3 2 3"),
        )
    )
)
"""The runs of a comparison, in turn."""


@dataclass(frozen=True)
class Series:
    """One model's values: a line of a plot.

    Attributes:
        label: name in the legend.
        style: how it is drawn.
        values: one number per item; None and what is not finite is left out.
    """

    label: str
    style: Style
    values: Sequence[float | None]


@dataclass(frozen=True)
class Point:
    """One model in the plane of forget quality against model utility; `log10_p` is at most 0."""

    label: str
    style: Style
    utility: float
    log10_p: float


def truth_ratio_cdfs(series: Sequence[Series], gap: bool = False) -> str:
    """Empirical distribution functions of the truth ratio: share of items at or below R, R on a log axis.

    Args:
        series: one per model; values above 0.
        gap: draw the Kolmogorov-Smirnov distance D between the first and the last series as a bar where it occurs.

    Raises:
        ValueError: a series has no finite value above 0.
    """
    samples = [_positive(one) for one in series]
    pooled = np.log10(np.concatenate(samples))
    # The outermost values stand at the edge: one item at 1e-30 must not squeeze the rest together.
    low, high = np.quantile(pooled, [0.005, 0.995])
    room = max(0.04 * (high - low), 0.05)
    keys, top = legend([(one.label, one.style) for one in series], lines=True)
    x = Scale(low - room, high + room, LEFT, RIGHT, log=True)
    y = Scale(0, 1, top + PANEL, top)
    body = [keys, axes(x, y, "truth ratio R of an item (log scale)", "share of items with R or less")]
    for one, sample in zip(series, samples, strict=True):
        steps = "".join(f"H{x(value):.1f}V{y((i + 1) / len(sample)):.1f}" for i, value in enumerate(sample))
        dash = f' stroke-dasharray="{one.style.dash}"' if one.style.dash else ""
        path = f'<path class="line" d="M{x.start} {y(0):.1f}{steps}H{x.end}"{dash}/>'
        body.append(coloured(one.style, path))
    counts = ", ".join(f"{one.label} {len(sample)}" for one, sample in zip(series, samples, strict=True))
    told = f"Distribution of the truth ratio; items: {counts}"
    if gap:
        at, first, last = ks_gap(samples[0], samples[-1])
        # Both are counts over n: without the last digits of their difference D rounds as the test's own.
        widest = number(round(abs(first - last), 12))
        body.append(_gap(x(at), y(first), y(last), f"D = {widest}"))
        told += f"; largest gap D = {widest} at R = {number(at)}"
    return picture(top + PANEL + BELOW, body, told)


def ks_gap(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Where two empirical distribution functions lie furthest apart: the value, and both functions there.

    Their difference is the Kolmogorov-Smirnov statistic D = max_x |F(x) - G(x)|.
    """
    a, b = np.sort(first), np.sort(second)
    places = np.concatenate([a, b])
    f, g = (np.searchsorted(sample, places, side="right") / len(sample) for sample in (a, b))
    widest = int(np.argmax(np.abs(f - g)))
    return float(places[widest]), float(f[widest]), float(g[widest])


def utility_parts(
    parts: Mapping[str, Mapping[str, float]], mean: Mapping[str, float], labels: Mapping[str, str]
) -> str:
    """Dot plot of the parts of model utility, one row each, and of their harmonic mean below.

    Args:
        parts: ``<set>/<metric>`` to the values of the models, named as in `STYLES`; within 0 and 1.
        mean: the harmonic means of the same models; no row where there are none.
        labels: how to call the models, in the order of the legend.
    """
    keys, top = legend([(label, STYLES[name]) for name, label in labels.items()])
    x, y = Scale(0, 1, 150, RIGHT), top
    rows, drawn_set = [], None
    for name, values in {**parts, **({"model_utility/harmonic_mean": mean} if mean else {})}.items():
        set_name, _, metric = name.partition("/")
        if set_name != drawn_set:
            y += 8 if drawn_set else 0
            rows.append(text(4, y + 15, set_name.replace("_", " "), "strong"))
            drawn_set, y = set_name, y + 20
        rows.append(_dot_row(x, y + 11, metric_label(metric), values, labels))
        y += 22
    grid = [line("grid", x(tick), top, x(tick), y + 4) for tick in x.ticks()]
    grid += [text(x(tick), y + 20, tick_label(tick), "tick", "middle") for tick in x.ticks()]
    told = "; ".join(
        f"{name}: {', '.join(f'{labels[model]} {number(value)}' for model, value in values.items())}"
        for name, values in parts.items()
    )
    return picture(y + 28, [keys, *grid, *rows], f"Parts of model utility. {told}")


def before_after(points: Sequence[tuple[float, float, str]], quantity: str, retain_mean: float | None = None) -> str:
    """Every item of a set as a point: its value before unlearning across, after unlearning upwards.

    Args:
        points: before, after, and what to show on hovering; values within 0 and 1.
        quantity: what the values are.
        retain_mean: the retain model's mean, drawn as a line.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("There is no item to draw: give at least one with a value before and after.")
    top = 12
    x, y = Scale(0, 1, LEFT, RIGHT), Scale(0, 1, top + PANEL + 20, top)
    body = [axes(x, y, f"{quantity} before unlearning", f"{quantity} after unlearning")]
    body.append(line("rule", x(0), y(0), x(1), y(1)))
    for before, after, title in points:
        body.append(coloured(STYLES["after"], marker("circle", x(before), y(after), 4, title), kind="faint"))
    body.append(text(x(0.5), y(0.5) - 8, "unchanged", "quiet halo", "end"))
    if retain_mean is not None:
        level = y(retain_mean)
        label_y = level - 6 if retain_mean < 0.93 else level + 15
        label = text(x.start + 6, label_y, f"retain model, mean {number(retain_mean)}", "halo own")
        body.append(coloured(STYLES["reference"], line("line", x.start, level, x.end, level, "2 3"), label))
    fell = sum(after < before for before, after, _ in points)
    return picture(y.start + BELOW, body, f"{quantity} per item: {fell} of {len(points)} items fell")


def quality_utility_plane(points: Sequence[Point], retain_utility: float | None = None) -> str:
    """Forget quality as log10 p upwards, model utility across, one point per model; the line p = .05.

    Compared with itself the retain model has p = 1 by definition: a dotted line, with a star at its utility.

    Args:
        points: the models.
        retain_utility: the retain model's utility.

    Raises:
        ValueError: there is no point.
    """
    if not points:
        raise ValueError("There is no model to draw: give at least one point.")
    across = [point.utility for point in points] + ([] if retain_utility is None else [retain_utility])
    middle, half = (max(across) + min(across)) / 2, max(0.62 * (max(across) - min(across)), 0.06)
    lowest = min(-3.0, *(point.log10_p for point in points))
    top = 12
    x = Scale(max(0.0, middle - half), min(1.0, middle + half), LEFT, RIGHT)
    y = Scale(1.08 * lowest, -0.12 * lowest, top + PANEL, top)
    level = math.log10(0.05)
    marks = [(x(point.utility), y(point.log10_p)) for point in points]
    body = [axes(x, y, "model utility", "forget quality, log10 p", keep=lambda tick: tick <= 0)]
    body.append(line("rule", LEFT, y(level), RIGHT, y(level)) + text(LEFT + 6, y(level) + 14, "p = .05", "halo quiet"))
    own = [line("line", LEFT, y(0), RIGHT, y(0), "2 3")]
    by_definition = "retain model: p = 1 by definition"
    star_is_left = retain_utility is not None and retain_utility < middle
    side, anchor = (RIGHT - 6, "end") if star_is_left else (LEFT + 6, "start")
    own.append(text(side, y(0) - 8, by_definition, "halo own", anchor))
    width = LETTER * len(by_definition)
    taken = [box(LEFT, y(level) + 4, 8 * LETTER, 12), box(side - width * star_is_left, y(0) - 19, width, 13)]
    taken += [box(px - 7, py - 7, 14, 14) for px, py in marks]
    if retain_utility is not None:
        own.append(marker("star", x(retain_utility), y(0), 9, f"retain model: model utility {number(retain_utility)}"))
        taken.append(box(x(retain_utility) - 9, y(0) - 9, 18, 18))
    body.append(coloured(STYLES["reference"], *own))
    told = [f"{point.label}: utility {number(point.utility)}, log10 p {number(point.log10_p)}" for point in points]
    for point, (px, py), title in zip(points, marks, told, strict=True):
        label = cut(point.label, 26)
        label_x, label_y, own_box = place_label(label, px, py, taken, (LEFT, top, RIGHT, y.start))
        taken.append(own_box)
        mark = marker(point.style.marker, px, py, 6, title)
        body.append(coloured(point.style, mark, text(label_x, label_y, label, "halo own")))
    return picture(y.start + BELOW, body, f"Forget quality against model utility. {'; '.join(told)}")


def track(
    value: float,
    interval: tuple[float, float] | None,
    target: float | None,
    before: float | None,
    span: tuple[float, float],
) -> str:
    """A line from one end of a metric's range to the other, with value, interval, target and value before on it."""
    x = Scale(*span, 12, WIDTH - 12)
    body = [line("rail", 12, 22, WIDTH - 12, 22)]
    if target is not None:
        body.append(line("target", x(target), 3, x(target), 41))
    if before is not None:
        body.append(coloured(STYLES["before"], marker("square", x(before), 22, 9, f"before: {number(before)}")))
    if interval is not None:
        low, high = map(x, interval)
        ends = [line("line", end, 12, end, 32) for end in (low, high)]
        body.append(coloured(STYLES["after"], line("line", low, 22, high, 22), *ends))
    body.append(coloured(STYLES["after"], marker("circle", x(value), 22, 9, f"value: {number(value)}")))
    told = f"{number(value)} between {number(span[0])} and {number(span[1])}"
    return picture(44, body, told if target is None else f"{told}, target {number(target)}", "track")


def metric_label(name: str) -> str:
    """The name of a metric as people read it."""
    return (
        name.replace("rouge_l", "ROUGE-L")
        .replace("privleak", "PrivLeak")
        .replace("normalised_", "norm. ")
        .replace("_", " ")
    )


def _positive(series: Series) -> np.ndarray:
    kept = sorted(value for value in series.values if value is not None and math.isfinite(value) and value > 0)
    if not kept:
        raise ValueError(f"{series.label} has no finite truth ratio above 0 to draw: leave that series out.")
    return np.array(kept)


def _dot_row(x: Scale, y: float, label: str, values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    parts = [text(x.start - 12, y + 4, label, anchor="end")]
    if {"before", "after"} <= values.keys():
        parts.append(line("axis", x(values["before"]), y, x(values["after"]), y))
    for name in ("reference", "before", "after"):
        if name in values:
            title = f"{label}, {labels[name]}: {number(values[name])}"
            parts.append(coloured(STYLES[name], marker(STYLES[name].marker, x(values[name]), y, 6, title)))
    return "".join(parts)


def _gap(x: float, first: float, second: float, label: str) -> str:
    top, bottom = min(first, second), max(first, second)
    side, anchor = (9, "start") if x < 0.72 * WIDTH else (-9, "end")
    name = text(x + side, (top + bottom) / 2 + 4, label, "strong halo", anchor)
    ends = "".join(line("gap", x - 5, end, x + 5, end) for end in (top, bottom))
    return line("gap", x, top, x, bottom) + ends + name
