"""What plots are drawn with: scales, lines, letters and markers as SVG, each a string.

Looks are left to the page: what is drawn carries a class (`grid`, `axis`, `line`, `rule`, `mark`, ...) and takes its
colour from a CSS variable with a default, so that a page can be light or dark. All text is escaped here. Lengths are in
units of the viewBox, `WIDTH` across.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 480
"""Width of a plot: what a phone shows without shrinking its letters below what can be read."""

LETTER = 7.4
"""Mean width of a letter at the 13 or 14 units that pages set."""

LEFT, RIGHT = 56, WIDTH - 14
"""Ends of the plotting area."""

PANEL = 290
"""Height of a plotting area."""

BELOW = 46
"""What the labels of an axis need below it."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a rectangle."""


@dataclass(frozen=True)
class Style:
    """How one model is drawn, told apart by colour and by marker or dash.

    Attributes:
        colour: a CSS variable.
        default: the colour on a page that does not set it.
        marker: a name of `marker`.
        dash: of its lines; empty for a solid one.
    """

    colour: str
    default: str
    marker: str
    dash: str = ""


@dataclass(frozen=True)
class Scale:
    """From numbers to places; what lies outside stands at the edge.

    Attributes:
        low, high: ends of the axis; base-10 logarithms where `log`.
        start, end: where these stand.
        log: whether equal factors are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a number stands."""
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers on the axis, some five of them."""
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            span = self.high - self.low
            factors = (1, 1.5, 2, 3, 5, 7) if span < 1.3 else (1, 2, 5) if span < 2.2 else (1,)
            every = max(1, math.ceil(len(decades) / 8))
            marks = [factor * 10.0**decade for decade in decades if decade % every == 0 for factor in factors]
            return [mark for mark in marks if self.low <= math.log10(mark) <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10 ** math.floor(math.log10(rough))
        step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def picture(height: float, body: Iterable[str], told: str, kind: str = "plot") -> str:
    """The whole drawing; `told` says in words what it shows, for those who hear it."""
    opening = f'<svg class="{kind}" viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(told)}">'
    return f"{opening}{''.join(body)}</svg>"


def coloured(style: Style, *inside: str, kind: str = "series") -> str:
    """A group in the colour of a model."""
    return f'<g class="{kind}" style="color:var({style.colour},{style.default})">{"".join(inside)}</g>'


def line(kind: str, x1: float, y1: float, x2: float, y2: float, dash: str = "") -> str:
    """A straight line of a class."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{kind}" d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}"{dashed}/>'


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> str:
    """One line of letters on the base line `y`."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


_SHAPES = {
    "square": "M-.85-.85h1.7v1.7h-1.7z",
    "diamond": "M0-1.15L1.15 0 0 1.15-1.15 0z",
    "triangle": "M0-1.1L1.1.85h-2.2z",
    "down": "M0 1.1L1.1-.85h-2.2z",
    "cross": "M-1-.55L-.55-1 0-.45.55-1 1-.55.45 0 1 .55.55 1 0 .45-.55 1-1 .55-.45 0z",
    "plus": "M-.33-1.1h.66v.77h.77v.66h-.77v.77h-.66v-.77h-.77v-.66h.77z",
    "star": "M0-1.15L.29-.38 1.1-.36.46.14.68.92 0 .47-.68.92-.46.14-1.1-.36-.29-.38z",
}


def marker(shape: str, x: float, y: float, size: float, title: str = "") -> str:
    """A circle, or one of the other shapes, with what is shown on hovering."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    if shape == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{size}">{inside}</circle>'
    place = f"translate({x:.1f} {y:.1f}) scale({size})"
    return f'<path class="mark" transform="{place}" d="{_SHAPES[shape]}">{inside}</path>'


def axes(x: Scale, y: Scale, x_label: str, y_label: str, keep: Callable[[float], bool] = lambda tick: True) -> str:
    """Both axes with grid, ticks and labels; `keep` chooses among the ticks of `y`."""
    parts = []
    for tick in x.ticks():
        parts.append(line("grid", x(tick), y.start, x(tick), y.end))
        parts.append(text(x(tick), y.start + 17, tick_label(tick), "tick", "middle"))
    parts.append(levels(y, y_label, x.start, x.end, keep))
    parts.append(f'<path class="axis" d="M{x.start} {y.end}V{y.start}H{x.end}"/>')
    parts.append(text((x.start + x.end) / 2, y.start + 38, x_label, anchor="middle"))
    return "".join(parts)


def levels(
    y: Scale, label: str, left: float = LEFT, right: float = RIGHT, keep: Callable[[float], bool] = lambda tick: True
) -> str:
    """The grid of the upright axis with ticks and label, without a line for the axis; `keep` as in `axes`."""
    parts = []
    for tick in filter(keep, y.ticks()):
        parts.append(line("grid", left, y(tick), right, y(tick)))
        parts.append(text(left - 7, y(tick) + 4, tick_label(tick), "tick", "end"))
    upright = f"translate(14 {(y.start + y.end) / 2}) rotate(-90)"
    parts.append(f'<text transform="{upright}" text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


def legend(entries: Sequence[tuple[str, Style]], lines: bool = False) -> tuple[str, int]:
    """The legend at the top, wrapped where it must be, and where the plot below it may begin."""
    parts, x, y = [], float(LEFT), 12
    for label, style in entries:
        label = cut(label, 50)
        width = 34 + LETTER * len(label) + 18
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + 20
        key = line("line", x, y, x + 26, y, style.dash) if lines else marker(style.marker, x + 13, y, 6)
        parts.append(coloured(style, key) + text(x + 33, y + 4, label))
        x += width
    return "".join(parts), y + 20


def place_label(label: str, x: float, y: float, taken: Sequence[Box], frame: Box) -> tuple[float, float, Box]:
    """Where a label beside a point overlaps least with what is there: its start, its base line, its box."""
    width = LETTER * len(label)
    starts = [(x + 11, y + 4), (x - 11 - width, y + 4), (x - width / 2, y + 22), (x - width / 2, y - 12)]
    starts += [(x + dx, y + dy) for dy in (19, -11, 34, -26) for dx in (6, -6 - width)]

    def cost(start: tuple[float, float]) -> float:
        own = box(start[0], start[1] - 11, width, 14)
        outside = width * 14 - _common(own, frame)
        return 5 * outside + sum(_common(own, other) for other in taken)

    left, base = min(starts, key=cost)
    return left, base, box(left, base - 11, width, 14)


def box(x: float, y: float, width: float, height: float) -> Box:
    """A rectangle from its upper left corner."""
    return x, y, x + width, y + height


def number(value: float) -> str:
    """A number as pages show it: three decimals, or two digits and a power of ten where those say nothing."""
    value = float(value) + 0.0  # no "-0.000"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"


def tick_label(value: float) -> str:
    """A number beside an axis, as short as it can be."""
    return f"{value:.10g}" if value == 0 or 1e-4 < abs(value) < 1e5 else f"1e{round(math.log10(abs(value)))}"


def cut(label: str, length: int) -> str:
    """A label of at most `length` letters."""
    return label if len(label) <= length else f"{label[: length - 1]}…"


def _common(one: Box, other: Box) -> float:
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)
