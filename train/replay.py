"""Where a run was in its data at every step, worked out again from what it has written down, and held against it."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from shared.config import structure
from shared.cursor import Cursor
from shared.errors import FormatError
from shared.format import Index
from shared.mixed_order import Order
from shared.storage import read_sealed
from train.config import DataConfig, RunConfig
from train.datasets import Datasets, open_datasets
from train.history import Stretch, read_history
from train.mixed_view import view_of
from train.orders import reading_order
from train.records import METRICS_NAME, Records
from train.run_files import RUN_NAME
from train.views import View


@dataclass(frozen=True)
class Reading:
    """A stretch with its dataset cut into the chunks that it reads."""

    stretch: Stretch
    data: DataConfig
    view: View
    order: Order
    start: int
    """The position at which the run was after step `stretch.begun`."""

    def position(self, step: int) -> int:
        """The first position of the global batch of `step`."""
        return self.start + (step - 1 - self.stretch.begun) * self.data.global_batch

    def step(self, position: int) -> int:
        """The step whose global batch has `position`."""
        return self.stretch.begun + 1 + (position - self.start) // self.data.global_batch


class Replay:
    """A run and its dataset; `tokens` says where that is, if not where the run last had it."""

    def __init__(self, run: Path, tokens: Path | None = None) -> None:
        """Raises: FormatError if there is no such run, or its dataset is gone or another one."""
        if not (run / RUN_NAME).is_file():
            raise FormatError(f"{run} is not a run (no {RUN_NAME}): name the directory of one that was started")
        written = read_sealed(run / RUN_NAME)
        self.run, self.identity = run, written["identity"]
        self.config = structure(self.identity["recipe"], RunConfig, str(run / RUN_NAME))
        self.total_steps: int = written["total_steps"]
        self.history, self.records = read_history(run, self.config), Records(run / METRICS_NAME)
        self.tokens = self._found(tokens or self.history.tokens)
        self.datasets = self._opened()
        self.cut = lru_cache(maxsize=8)(self._cut)

    def reading(self, stretch: Stretch) -> Reading:
        """Raises: FormatError if what the stretch has read was not written down."""
        if stretch.data is None:
            raise FormatError(
                f"it is not known what {self.run} read after step {stretch.after}: other options of [data] came later, "
                "and the release that it was started by did not write down those from before"
            )
        view, order = self.cut(stretch.data)
        if stretch.cursor is not None:
            return Reading(stretch, stretch.data, view, order, order.position(stretch.cursor))
        record = self.records.of(stretch.begun + 1)
        if record is None:
            raise FormatError(
                f"it is not known where {self.run} was after step {stretch.begun}: the release that it was started by "
                "did not write it down, and metrics.jsonl has no step behind it"
            )
        return Reading(stretch, stretch.data, view, order, order.position(_cursor(record)) - stretch.data.global_batch)

    def compare(self, reading: Reading, step: int) -> None:
        """Raises: FormatError if the record of a step has it end at another place than was worked out."""
        if (record := self.records.of(step)) is None:
            return
        worked_out = reading.order.cursor(reading.position(step + 1))
        if worked_out != _cursor(record):
            raise FormatError(
                f"{self.run}/metrics.jsonl has step {step} end at {tuple(_cursor(record))}, by events.jsonl it does at "
                f"{tuple(worked_out)} (epoch, shard, offset): one of them is not whole, so what it read is not known"
            )

    @property
    def index(self) -> Index:
        """Of all that the run reads."""
        return self.datasets.index

    def _cut(self, data: DataConfig) -> tuple[View, Order]:
        """The chunks that are read by some options, and their order."""
        model = self.config.model
        positions = max(model.max_position_embeddings, data.sequence_length)  # it may have had a longer one before
        config = replace(self.config, data=data, model=replace(model, max_position_embeddings=positions))
        view = view_of(self.datasets, config)
        if view.packing != self.identity.get("packing"):
            found, wanted = str(view.packing)[:12], str(self.identity.get("packing"))[:12]
            raise FormatError(f"{self.run} was trained with packing {wanted}, {self.tokens} has {found}: make it again")
        return view, reading_order(view, config, tuple(self.identity.get("beginning", {}).get("starts", ())))

    def _found(self, tokens: Path | None) -> Path:
        if tokens is None:
            raise FormatError(f"{self.run} does not say where its dataset is: give it with --tokens")
        if not tokens.is_dir():
            wanted = self.identity["dataset"][:12]
            raise FormatError(f"{tokens} is gone, {self.run} was trained on it: give dataset {wanted} with --tokens")
        return tokens

    def _opened(self) -> Datasets:
        datasets = open_datasets(self.tokens, self.config.data)
        index = datasets.index
        if index.fingerprint != self.identity["dataset"]:
            found, wanted = index.fingerprint[:12], self.identity["dataset"][:12]
            raise FormatError(
                f"{self.run} was trained on dataset {wanted}, {self.tokens} is {found}: give that one with --tokens"
            )
        return datasets


def _cursor(record: dict[str, int]) -> Cursor:
    return Cursor(*(record[name] for name in Cursor._fields))
