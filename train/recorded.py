"""What a run has written down so far, read as it is: also of a run that is alive, died in the middle of a line, or has
no steps yet. Whatever cannot be read is told in `problems`, never left out in silence.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.directories import exists
from shared.errors import FormatError
from shared.files import open_file, read_bytes
from shared.storage import read_sealed
from shared.terminal import counted
from train.outcome import STATE_NAME
from train.records import EVENTS_NAME, METRICS_NAME
from train.run_files import RUN_NAME

Values = npt.NDArray[np.float64]
COLUMNS = (
    *("step", "tokens", "loss", "validation_loss", "grad_norm", "lr", "lr_matrices", "lr_embeddings", "lr_vectors"),
    *("tokens_per_s", "step_s", "data_wait_s", "validation_s", "mfu", "bubble"),
)
LINES = 4096  # that are taken apart at once
MOST = 1e18
"""What is larger is no step, token count, time or loss."""
LATEST_S = 1e11  # a wall time


@dataclass(frozen=True)
class Recorded:
    """The files of one run. A column has a value for each step, NaN where its record has none."""

    run: Path
    columns: Mapping[str, Values]
    events: list[dict[str, Any]] = field(default_factory=list)
    last: Mapping[str, Any] = field(default_factory=dict)
    """The record of the last step."""
    digests: Mapping[int, str] = field(default_factory=dict)
    """Of the data up to the steps that were asked for."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """run.json."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """state.json."""
    problems: list[str] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps that there is a record of."""
        return len(self.columns["step"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Its sections with all values, as the last start resolved them."""
        return section(section(self.about, "identity"), "recipe")

    @property
    def sources(self) -> list[str]:
        """Names of the sources of its mixture, for each of which there are two columns of losses."""
        return sources_of(self.about)

    def tokens_at(self, steps: Values) -> Values:
        """Tokens trained on after each of some steps, as far as the records tell."""
        if not self.num_steps:
            return np.zeros_like(steps)
        known, tokens = (np.concatenate([[0.0], self.columns[name]]) for name in ("step", "tokens"))
        return np.asarray(np.interp(steps, known, tokens))


def read_run(run: Path, digests_of: Iterable[int] = ()) -> Recorded:
    """What is in the directory of a run now; with the digest of the data up to each of some steps.

    Raises: FormatError if it is no run.
    """
    if not any(exists(run / name) for name in (RUN_NAME, METRICS_NAME, EVENTS_NAME)):
        raise FormatError(f"{run} is not a run (no {RUN_NAME}, no {METRICS_NAME}): name the directory of a run")
    problems: list[str] = []
    about, state = (_read_sealed(run / name, problems) for name in (RUN_NAME, STATE_NAME))
    names = [*COLUMNS, *(name for source in sources_of(about) for name in loss_columns(source))]
    columns, last, digests = _read_metrics(run / METRICS_NAME, names, frozenset(digests_of), problems)
    events = _read_events(run / EVENTS_NAME, problems)
    return Recorded(run, columns, events, last, digests, about, state, problems)


def sources_of(about: Mapping[str, Any]) -> list[str]:
    """Names of the sources of a mixture, of what run.json has."""
    return [*section(section(about, "identity"), "sources")]


def loss_columns(source: str) -> tuple[str, str]:
    """The columns of a source's loss in training and in validation."""
    return f"loss_{source}", f"validation_loss_{source}"


def section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table within a document; an empty one if there is none."""
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def number(event: Mapping[str, Any], name: str) -> float:
    """A number of an event or record; NaN if there is none, or none that means anything.

    >>> number({"step": 3}, "step"), number({"step": "3"}, "step"), number({}, "step"), number({"step": 1e300}, "step")
    (3.0, nan, nan, nan)
    """
    value = event.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < MOST else math.nan


def _read_metrics(
    path: Path, names: Sequence[str], digests_of: frozenset[int], problems: list[str]
) -> tuple[dict[str, Values], dict[str, Any], dict[int, str]]:
    """The columns of those names, the last record, and the digests asked for."""
    pieces: dict[str, list[Values]] = {name: [] for name in names}
    last: dict[str, Any] = {}
    digests: dict[int, str] = {}
    for records in _records(path, problems):
        steps = [number(record, "step") for record in records]
        usable = [record for record, step in zip(records, steps, strict=True) if not math.isnan(step)]
        _tell_unreadable(path, len(records) - len(usable), "without a step", problems)
        for name in names:
            pieces[name].append(_column(usable, name))
        last = usable[-1] if usable else last
        if digests_of:
            digests |= {r["step"]: str(r.get("data_digest", "")) for r in usable if r["step"] in digests_of}
    empty = np.empty(0)
    return {name: np.concatenate([empty, *parts]) for name, parts in pieces.items()}, last, digests


def _column(records: list[dict[str, Any]], name: str) -> Values:
    try:
        values = np.array([record.get(name) for record in records], np.float64)  # None is NaN
    except (TypeError, ValueError, OverflowError):  # something else than a number in some of them
        values = np.array([number(record, name) for record in records], np.float64)
    values[np.abs(values) >= MOST] = math.nan
    return values


def _read_events(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    events = [event for records in _records(path, problems) for event in records]
    usable = [e for e in events if isinstance(e.get("event"), str) and 0 <= number(e, "time") < LATEST_S]
    _tell_unreadable(path, len(events) - len(usable), "without a time or a name", problems)
    return usable


def _records(path: Path, problems: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The records of a file of JSON lines, many at a time; a line that a kill cut short is left out and told."""
    if not exists(path):
        return
    with open_file(path) as file:
        while lines := list(islice(file, LINES)):
            if not lines[-1].endswith(b"\n"):
                problems.append(f"{path.name} ends in the middle of a line, which is left out")
                lines.pop()
            try:
                records = json.loads(b"[" + b",".join(lines) + b"]")
            except ValueError:
                records = [*_one_by_one(lines)]
            usable = [record for record in records if isinstance(record, dict)]
            _tell_unreadable(path, len(lines) - len(usable), "that is no JSON object", problems)
            yield usable


def _one_by_one(lines: list[bytes]) -> Iterator[Any]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            yield None


def _tell_unreadable(path: Path, count: int, what: str, problems: list[str]) -> None:
    if count:
        problems.append(f"{path.name} has {counted(count, 'line')} {what}: left out")


def _read_sealed(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not exists(path):
        return {}
    try:
        return read_sealed(path)
    except FormatError as error:
        problems.append(str(error))
    try:
        document = json.loads(read_bytes(path))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
