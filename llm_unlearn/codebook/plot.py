"""What deleting more codes does, drawn: the curve of a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llm_unlearn.codebook.curve import CurvePoint
from llm_unlearn.evaluation.plots import RUN_STYLES
from llm_unlearn.evaluation.svg import BELOW, LEFT, RIGHT, Scale, Style, axes, coloured, legend, marker, number, picture

_PANEL, _BETWEEN = 190, 34
_RANDOM = Style("--quiet", "#5a6474", "circle", "5 4")

Value = Callable[[CurvePoint], float]


def trade_off(curve: Sequence[CurvePoint]) -> str:
    """Forgetting and its price against the number of deleted codes, a line per mode; random codes in use are dashed.

    Above, the mean probability of the answers to forget; below, by how many per cent the loss of what is kept has
    risen, where it was measured.

    Args:
        curve: of a plan after `CodeUnlearner.sweep`.

    Returns:
        A drawing as in `evaluation.plots`.

    Raises:
        ValueError: the curve has no point without deletion, or no other.
    """
    start = next((point for point in curve if point.mode == "none"), None)
    points = [point for point in curve if point.mode != "none"]
    if start is None or not points:
        raise ValueError("The plan has no curve to draw: `sweep` it first (`--sweep`).")
    styles = dict(zip(dict.fromkeys(point.mode for point in points), RUN_STYLES, strict=False))
    keys, top = legend(list(styles.items()))
    body, told = [keys], []
    if any(point.chosen == "random" for point in points):
        keys, below = legend([("as many random codes", _RANDOM)], lines=True)
        body.append(f'<g transform="translate(0 {top - 12})">{keys}</g>')
        top += below - 12
    across = Scale(0, 1.04 * max(1, *(point.n_codes for point in points)), LEFT, RIGHT)
    panels: list[tuple[str, Value]] = [("forget probability", lambda point: point.forget_probability)]
    if start.retain_loss:
        panels.append(("rise of retain loss, %", lambda point: 100 * (point.retain_loss / start.retain_loss - 1)))
    for label, value in panels:
        values = [value(point) for point in (start, *points)]
        low, high = min(0.0, *values), max(0.0, *values)
        room = 0.06 * (high - low) or 1.0
        y = Scale(low - room * (low < 0), high + room, top + _PANEL, top)
        body.append(axes(across, y, "deleted codes" if label == panels[-1][0] else "", label))
        for mode, style in styles.items():
            for chosen in ("random", "selected"):
                some = [point for point in points if (point.mode, point.chosen) == (mode, chosen)]
                body.append(_line(start, some, across, y, value, style) if some else "")
        least, most = number(min(values[1:])), number(max(values[1:]))
        told.append(f"{label}: {number(values[0])} with none deleted, then {least} to {most}")
        top += _PANEL + _BETWEEN
    return picture(top - _BETWEEN + BELOW, body, f"Codes deleted and their effect. {'; '.join(told)}")


def _line(start: CurvePoint, points: Sequence[CurvePoint], x: Scale, y: Scale, value: Value, style: Style) -> str:
    is_random = points[0].chosen == "random"
    ordered = [start, *sorted(points, key=lambda point: point.n_codes)]
    path = "L".join(f"{x(point.n_codes):.1f} {y(value(point)):.1f}" for point in ordered)
    marks = []
    for point in ordered[1:]:
        title = f"{point.mode}, {point.n_codes}{' random' if is_random else ''} codes: {number(value(point))}"
        marks.append(marker(style.marker, x(point.n_codes), y(value(point)), 3.5 if is_random else 5.5, title))
    dash = f' stroke-dasharray="{_RANDOM.dash}"' if is_random else ""
    return coloured(style, f'<path class="line" d="M{path}"{dash}/>', *marks)
