"""The plots of a report: pictures that need no script, and the data by which report.js draws them to be read."""

import math
from collections.abc import Sequence
from typing import Any

from shared.page import Html, Section, element, joined
from train.curves import KINDS, Mark, Plot, curves, marks, plots_of
from train.drawing import Line, draw
from train.study import Study

WIDE, NARROW = (1150, 320), (560, 240)
COLORS, DASHES = 4, 4
"""Styles of report.css."""


def plot_section(studies: Sequence[Study]) -> tuple[Section, dict[str, Any]]:
    """All plots of one run, or of two in the same plots, and what report.js needs for them."""
    sources = dict.fromkeys(name for study in studies for name in study.recorded.sources)
    drawn = [(plot, lines_of(plot, studies)) for plot in plots_of([*sources])]
    drawn = [(plot, lines) for plot, lines in drawn if lines]
    all_marks = [mark for study in studies for mark in _marks_of(study, len(studies) > 1)]
    figures = [_figure(plot, lines, all_marks) for plot, lines in drawn]
    if not figures:
        return Section("curves", "Curves", element("p", "No step is done yet.")), _data([], all_marks)
    body = joined([_controls(), element("div", *figures, class_="plots"), _key_of_marks(all_marks)])
    return Section("curves", "Curves", body), _data(drawn, all_marks)


def lines_of(plot: Plot, studies: Sequence[Study]) -> list[Line]:
    """The lines of a plot: of one run each has a color, of two the color is the run's."""
    lines = []
    for number, study in enumerate(studies):
        for place, curve in enumerate(curves(study.recorded, plot)):
            label = curve.label if len(studies) == 1 else f"{study.name}: {curve.label}"
            color, dash = (place % COLORS, place // COLORS) if len(studies) == 1 else (number, place)
            lines.append(Line(curve, color, dash % DASHES, label))
    return lines


def _marks_of(study: Study, is_named: bool) -> list[Mark]:
    found = marks(study.recorded)
    return [Mark(m.kind, m.step, m.tokens, f"{study.name}: {m.text}") for m in found] if is_named else found


def _controls() -> Html:
    choices = [
        element("label", element("input", type="radio", name="axis", value=axis, checked=axis == "steps"), f" {axis}")
        for axis in ("steps", "tokens")
    ]
    hint = "Drag to zoom, double click to go back. By keyboard: arrow keys read, + and - zoom, Escape goes back."
    return element(
        "div",
        element("fieldset", element("legend", "Against", class_="skip"), element("span", "Against"), *choices),
        element("button", "Show all", class_="reset", type="button", disabled=True),
        element("small", hint),
        class_="controls needs-script",
    )


def _figure(plot: Plot, lines: Sequence[Line], all_marks: Sequence[Mark]) -> Html:
    is_wide = plot.name == "loss"
    head = element(
        "div",
        element("h3", plot.title, " ", element("small", plot.unit)),
        element(
            "label",
            element("input", type="checkbox", class_="log", checked=plot.is_logarithmic),
            " logarithmic",
            class_="needs-script",
        ),
        class_="plot-head",
    )
    picture = draw(lines, all_marks, _label(plot, lines), WIDE if is_wide else NARROW, plot.is_logarithmic)
    canvas = element("div", picture, class_="canvas", tabindex=0, role="group", aria_label=f"{plot.title}, arrow keys")
    keys = (element("span", _sample(line), line.label, class_="key") for line in lines)
    return element(
        "figure",
        head,
        canvas,
        element("figcaption", *keys),
        element("p", class_="readout needs-script", role="status"),
        class_="plot wide" if is_wide else "plot",
        id=f"plot-{plot.name}",
    )


def _label(plot: Plot, lines: Sequence[Line]) -> str:
    """What a picture shows, for who does not see it."""
    ends = (f"{line.label} from {line.curve.values[0]:.4g} to {line.curve.values[-1]:.4g}" for line in lines)
    return f"{plot.title}: {'; '.join(ends)}"


def _sample(line: Line) -> Html:
    style = f"line color{line.color} dash{line.dash}"
    return element("svg", element("polyline", points="0,6 32,6", class_=style), viewBox="0 0 32 12", aria_hidden="true")


def _key_of_marks(all_marks: Sequence[Mark]) -> Html:
    there = {mark.kind for mark in all_marks}
    told = [
        f"{letter} {meaning}" if kind != "save" else f"tick at the bottom: {meaning}"
        for kind, (letter, meaning) in KINDS.items()
        if kind in there
    ]
    return element("p", "Marks: ", "; ".join(told), class_="quiet") if told else Html("")


def _data(drawn: Sequence[tuple[Plot, Sequence[Line]]], all_marks: Sequence[Mark]) -> dict[str, Any]:
    last = {"steps": 1.0, "tokens": 1.0}
    for _, lines in drawn:
        for line in lines:
            last["steps"] = max(last["steps"], float(line.curve.steps[-1]))
            last["tokens"] = max(last["tokens"], float(line.curve.tokens[-1]))
    ascending = sorted(all_marks, key=lambda mark: mark.step)
    return {
        "plots": [
            {
                "label": _label(plot, lines),
                "log": plot.is_logarithmic,
                "height": (WIDE if plot.name == "loss" else NARROW)[1],
                "lines": [_line(line) for line in lines],
            }
            for plot, lines in drawn
        ],
        "marks": [
            {"kind": m.kind, "letter": KINDS[m.kind][0], "steps": m.step, "tokens": m.tokens, "text": m.text}
            for m in ascending
        ],
        "last": last,
    }


def _line(line: Line) -> dict[str, Any]:
    curve = line.curve
    return {
        "label": line.label,
        "color": line.color,
        "dash": line.dash,
        "steps": _whole(curve.steps.tolist()),
        "tokens": _whole(curve.tokens.tolist()),
        "values": [float(f"{value:.6g}") if math.isfinite(value) else None for value in curve.values.tolist()],
    }


def _whole(values: list[float]) -> list[int]:
    """Steps and tokens as the whole numbers they are."""
    return [int(value) if math.isfinite(value) else 0 for value in values]
