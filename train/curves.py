"""The columns of a run as curves of few points, and its events as marks beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from train.recorded import Recorded, Values, loss_columns, number
from train.starts import ENDS

MOST_POINTS = 1000
MOST_MARKS = 300
"""Of one kind, of which the first are drawn."""
LONGEST = 160
"""Letters of a mark's text."""


@dataclass(frozen=True)
class Plot:
    """What is drawn together, against steps or tokens."""

    name: str
    title: str
    unit: str
    columns: Mapping[str, str]
    """And what each of them is called."""
    is_logarithmic: bool = False
    """At first."""


PLOTS = (
    Plot("loss", "Loss", "nats per token", {"loss": "training", "validation_loss": "validation"}),
    Plot("grad-norm", "Gradient norm", "", {"grad_norm": "gradient norm"}, is_logarithmic=True),
    Plot(
        "learning-rate",
        "Learning rate",
        "",
        {"lr_matrices": "matrices", "lr_embeddings": "embeddings", "lr_vectors": "vectors"},
    ),
    Plot("speed", "Tokens per second", "tokens/s", {"tokens_per_s": "tokens/s"}),
    Plot("mfu", "Model FLOPs utilization", "share", {"mfu": "MFU"}),
    Plot("data-wait", "Waiting for data", "s per step", {"data_wait_s": "data-wait"}, is_logarithmic=True),
    Plot("bubble", "Pipeline bubble", "share of a step", {"bubble": "bubble"}),
)
"""Of any run."""
KINDS = {
    "spike": ("P", "spike"),
    "skip": ("X", "step skipped"),
    "bad-step": ("2", "step tried twice"),
    "hang": ("H", "hang"),
    "rollback": ("R", "rollback"),
    "backoff": ("M", "out of memory, backed off"),
    "problem": ("!", "save or logger failed, damaged, or gone slow"),
    "start": ("S", "start or restart"),
    "end": ("E", "end"),
    "save": ("C", "checkpoint saved"),
}
"""Of marks: the letter of each, and what it means; where there is room for one letter it is that of the first."""
KIND_OF = dict.fromkeys(("save-failed", "damaged", "straggler", "eager", "logger"), "problem") | dict.fromkeys(
    ENDS, "end"
)


@dataclass(frozen=True)
class Curve:
    """A column at few of its steps: the least and the greatest value of every stretch are among them."""

    label: str
    steps: Values
    tokens: Values
    values: Values


@dataclass(frozen=True)
class Mark:
    """An event at a step."""

    kind: str
    step: float
    tokens: float
    text: str


def plots_of(sources: Sequence[str]) -> Sequence[Plot]:
    """The plots of runs whose mixtures have these sources, the losses of each of them behind those of all."""
    if not sources:
        return PLOTS
    training, validation = ({loss_columns(name)[which]: name for name in sources} for which in range(2))
    return (
        PLOTS[0],
        Plot("source-loss", "Loss of each source", "nats per token", training),
        Plot("source-validation", "Validation loss of each source", "nats per token", validation),
        *PLOTS[1:],
    )


def curves(recorded: Recorded, plot: Plot) -> list[Curve]:
    """The curves of a plot; columns without a value have none, and columns that are all the same have one."""
    columns, drawn = recorded.columns, dict[str, str]()
    for name, label in plot.columns.items():
        if name not in columns or np.isnan(columns[name]).all():
            continue
        twin = next((other for other in drawn if np.array_equal(columns[other], columns[name], equal_nan=True)), None)
        if twin is None:
            drawn[name] = label
        else:
            drawn[twin] += f", {label}"
    return [_curve(recorded, name, label) for name, label in drawn.items()]


def _curve(recorded: Recorded, name: str, label: str) -> Curve:
    there = np.flatnonzero(~np.isnan(recorded.columns[name]))
    kept = there[extremes(recorded.columns[name][there], MOST_POINTS)]
    return Curve(label, *(recorded.columns[column][kept] for column in ("step", "tokens", name)))


def extremes(values: Values, most: int) -> npt.NDArray[np.int64]:
    """Places of at most `most` values, ascending: the first, the last, and the extremes of equal stretches between.

    >>> extremes(np.array([1.0, 2.0, 9.0, 2.0, 1.0, 0.0, 1.0, 2.0, 3.0]), 6).tolist()
    [0, 2, 5, 8]
    """
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (most - 2) // 2 + 1).astype(np.int64)
    stretches = [(values[low:high], low) for low, high in pairwise(edges)]
    found = [(low + stretch.argmin(), low + stretch.argmax()) for stretch, low in stretches]
    return np.unique([0, len(values) - 1, *np.ravel(found)])


def marks(recorded: Recorded) -> list[Mark]:
    """What happened, in the order in which it was told; of a kind that happened very often the first."""
    found: dict[str, list[Mark]] = {kind: [] for kind in KINDS}
    steps = np.array([number(event, "step") for event in recorded.events])
    tokens = recorded.tokens_at(steps)
    for event, step, token in zip(recorded.events, steps.tolist(), tokens.tolist(), strict=True):
        kind = kind_of(event)
        if kind in found and not np.isnan(step) and len(found[kind]) < MOST_MARKS:
            found[kind].append(Mark(kind, step, token, cut(f"step {step:,.0f}: {told(event)}")))
    return [mark for kind in found.values() for mark in kind]


def cut(text: str) -> str:
    """A text, or as much of it as a mark has room for."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def kind_of(event: Mapping[str, Any]) -> str:
    """The kind of mark that an event is, or its own name if none."""
    name = str(event["event"])
    if name == "bad-step" and event.get("skipped"):
        return "skip"
    return KIND_OF.get(name, name)


def told(event: Mapping[str, Any]) -> str:
    """An event in a few words.

    >>> told({"time": 1.0, "event": "save", "step": 5, "stall_s": 0.1})
    'save: stall_s 0.1'
    """
    details = {name: value for name, value in event.items() if isinstance(value, str | int | float)}
    said = ", ".join(f"{name} {value}" for name, value in details.items() if name not in ("time", "event", "step"))
    said = event.get("problem") or event.get("layout") or said
    return f"{event['event']}: {said}"


def documents_of(event: Mapping[str, Any]) -> dict[str, list[tuple[int, int]]]:
    """The documents of an event as stretches of rows, first and last, by input file.

    >>> documents_of({"documents": [{"source": "a", "rows": [3, 5]}, {"source": "a", "rows": [5, 9]}]})
    {'a': [(3, 9)]}
    """
    found: dict[str, list[tuple[int, int]]] = {}
    told = event.get("documents")
    for source, first, last in sorted(filter(None, map(_rows, told if isinstance(told, list) else []))):
        stretches = found.setdefault(source, [])
        if stretches and first <= stretches[-1][1] + 1:
            stretches[-1] = stretches[-1][0], max(stretches[-1][1], last)
        else:
            stretches.append((first, last))
    return found


def _rows(document: Any) -> tuple[str, int, int] | None:
    match document:
        case {"source": str(source), "rows": [int(first), int(last)]}:
            return source, first, last
        case _:
            return None
