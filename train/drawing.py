"""Curves as an SVG picture that needs no script; report.js draws the same once there is one."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shared.page import Html, element
from train.curves import KINDS, Curve, Mark

LEFT, RIGHT, TOP, BOTTOM = 60, 12, 20, 30
LETTER_WIDTH = 12


@dataclass(frozen=True)
class Line:
    """A curve in its place among those of one plot: `color` and `dash` are numbers of styles in report.css."""

    curve: Curve
    color: int
    dash: int
    label: str


def draw(lines: Sequence[Line], marks: Sequence[Mark], label: str, size: tuple[int, int], is_logarithmic: bool) -> Html:
    """The lines against steps, with marks behind them."""
    width, height = size
    last = max([1.0, *(float(line.curve.steps[-1]) for line in lines), *(mark.step for mark in marks)])
    across = Scale(0.0, last, LEFT, width - RIGHT)
    up = scale_of(lines, height, is_logarithmic)
    parts = [*_grid(across, up, width, height), *_marks(marks, across, height)]
    parts += [_path(line, across, up) for line in lines]
    return element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto places from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        low, high, here = (self._level(x) for x in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values between low and high, about `most` at most.

        >>> Scale(0.0, 1234.0, 0, 1).ticks(6)
        [0.0, 250.0, 500.0, 750.0, 1000.0]
        >>> Scale(0.03, 20.0, 0, 1, True).ticks(6)
        [0.1, 1.0, 10.0]
        """
        if self.is_logarithmic and (decades := _decades(self.low, self.high, most)):
            return decades
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10, 20) if (self.high - self.low) / (step * factor) <= most)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _level(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_logarithmic else value


def _decades(low: float, high: float, most: int) -> list[float]:
    """Powers of ten within, if there are two of them."""
    exponents = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    every = max(1, -(-len(exponents) // most))
    return [10.0**exponent for exponent in exponents if exponent % every == 0] if len(exponents) > 1 else []


def scale_of(lines: Sequence[Line], height: int, is_logarithmic: bool) -> Scale:
    """The scale upwards that all lines fit in; logarithmic if that is wanted and there are values above 0."""
    values = [value for line in lines for value in line.curve.values.tolist() if math.isfinite(value)]
    above = [value for value in values if value > 0]
    is_logarithmic = is_logarithmic and bool(above)
    low, high = (min(above), max(above)) if is_logarithmic else (min(values, default=0.0), max(values, default=1.0))
    if is_logarithmic:
        margin = max((high / low) ** 0.04, 1.02)
        low, high = low / margin, high * margin
    else:
        margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        low, high = (0.0 if 0 <= low < 0.2 * high else low - margin), high + margin
    return Scale(low, high, height - BOTTOM, TOP, is_logarithmic)


def _grid(across: Scale, up: Scale, width: int, height: int) -> list[Html]:
    parts = []
    for value in up.ticks(5):
        y = f"{up.place(value):.1f}"
        parts.append(element("line", class_="axis", x1=LEFT, x2=width - RIGHT, y1=y, y2=y))
        parts.append(element("text", short(value), x=LEFT - 8, y=y, text_anchor="end", dominant_baseline="middle"))
    for value in across.ticks(max(2, width // 110)):
        x = f"{across.place(value):.1f}"
        parts.append(element("text", short(value), x=x, y=height - 10, text_anchor="middle"))
    base = height - BOTTOM
    return [*parts, element("line", class_="axis", x1=LEFT, x2=width - RIGHT, y1=base, y2=base)]


def _marks(marks: Sequence[Mark], across: Scale, height: int) -> list[Html]:
    """A line for each mark, with its letter and its text where there is room; a save has a tick at the bottom."""
    lines, letters, free_from = defaultdict[str, list[str]](list), [], 0.0
    for mark in sorted(marks, key=lambda mark: mark.step):
        x, is_tick = across.place(mark.step), mark.kind == "save"
        lines[mark.kind].append(f"M{x:.1f} {height - BOTTOM - 6 if is_tick else TOP - 4}V{height - BOTTOM}")
        if not is_tick and x >= free_from:
            free_from = x + LETTER_WIDTH
            told = element("title", mark.text), KINDS[mark.kind][0]
            letter = element("text", *told, x=f"{x:.1f}", y=TOP - 7, text_anchor="middle")
            letters.append(element("g", letter, class_=f"mark {mark.kind}"))
    drawn = (element("path", d="".join(places), class_=f"mark {kind}") for kind, places in lines.items())
    return [*drawn, *letters]


def _path(line: Line, across: Scale, up: Scale) -> Html:
    """A line through its values; one of few values has dots."""
    curve, classes = line.curve, f"line color{line.color} dash{line.dash}"
    rows = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    shown = [(x, y) for x, y in rows if math.isfinite(y) and (y > 0 or not up.is_logarithmic)]
    points = [f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in shown]
    drawn = element("polyline", points=" ".join(points), class_=classes)
    if len(points) > 40:
        return drawn
    centers = (point.split(",") for point in points)
    dots = (element("circle", cx=x, cy=y, r=2.5, class_=f"dot color{line.color}") for x, y in centers)
    return element("g", drawn, *dots)


def stacked(shares: Sequence[tuple[str, float]], label: str) -> Html:
    """A bar whose parts have the classes and the sizes given."""
    total = sum(size for _, size in shares) or 1.0
    edges = [0.0]
    for _, size in shares:
        edges.append(edges[-1] + size / total * 1000)
    parts = (
        element("rect", x=f"{low:.2f}", y=0, width=f"{high - low:.2f}", height=22, class_=name)
        for (name, _), (low, high) in zip(shares, pairwise(edges), strict=True)
    )
    return element(
        "svg", *parts, viewBox="0 0 1000 22", preserveAspectRatio="none", role="img", aria_label=label, class_="stacked"
    )


def short(value: float) -> str:
    """A number in a few characters.

    >>> [short(value) for value in (0.0, 2.5, 1500.0, 4e6, 3e9, 0.0003, 0.05)]
    ['0', '2.5', '1.5k', '4M', '3G', '3e-4', '0.05']
    """
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e3:
        return f"{value:.4g}"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.2e}".replace("e-0", "e-").replace(".00e", "e").replace("0e", "e")
