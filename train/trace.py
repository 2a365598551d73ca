"""Which documents a step of a run has seen, and at which steps a document was seen: arithmetic, in both directions.

From the dataset's index and what the run has written down; nothing is logged for it. Where metrics.jsonl has a step, the
place that it was at there is compared with what was worked out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from shared.config import structure
from shared.cursor import Cursor, ReadingOrder, rank_positions
from shared.errors import ConfigError, FormatError
from shared.format import Index, read_index
from shared.rows import InputRows, ShardRow
from shared.storage import read_sealed
from train.config import DataConfig, RunConfig
from train.data import reading_order
from train.grid import ranks_of
from train.history import Stretch, read_history
from train.preflight import RUN_NAME
from train.provenance import Part, Provenance
from train.records import Records
from train.views import View, open_view

State = Literal["done", "undone", "to come"]


@dataclass(frozen=True)
class SeenChunk:
    """A chunk of a step: where it stands, who had it, and what of which documents is in it."""

    position: int
    epoch: int
    shard: int
    offset: int
    dp_rank: int | None
    """Which data-parallel rank had it. None, as the next two: the start of that step did not tell its layout."""
    ranks: list[int] | None
    """The ranks that it went through, stage by stage."""
    microbatch: int | None
    """Which of that rank's microbatches it was in."""
    documents: list[Part]


@dataclass(frozen=True)
class SeenStep:
    """What one optimizer step has read, or will read if nothing changes."""

    step: int
    state: State
    learned: bool | None
    """False: it was skipped, as its loss or gradient was not finite. None: there is no record of it."""
    loss: float | None
    layout: str
    sequence_length: int
    chunks: list[SeenChunk]


@dataclass(frozen=True)
class Sighting:
    """A step that had a part of a document in one of its chunks, of which `documents` has that part alone."""

    step: int
    state: State
    learned: bool | None
    chunk: SeenChunk


@dataclass(frozen=True)
class Reading:
    """A stretch with its dataset cut into the chunks that it reads."""

    stretch: Stretch
    data: DataConfig
    view: View
    order: ReadingOrder
    start: int
    """The position at which the run was after step `stretch.begun`."""

    def position(self, step: int) -> int:
        """The first position of the global batch of `step`."""
        return self.start + (step - 1 - self.stretch.begun) * self.data.global_batch

    def step(self, position: int) -> int:
        """The step whose global batch has `position`."""
        return self.stretch.begun + 1 + (position - self.start) // self.data.global_batch


class Trace:
    """A run and its dataset; `tokens` says where that is, if not where the run last had it."""

    def __init__(self, run: Path, tokens: Path | None = None) -> None:
        """Raises: FormatError if there is no such run, or its dataset is gone or another one."""
        if not (run / RUN_NAME).is_file():
            raise FormatError(f"{run} is not a run (no {RUN_NAME}): name the directory of one that was started")
        written = read_sealed(run / RUN_NAME)
        self.run, self.identity = run, written["identity"]
        self.config = structure(self.identity["recipe"], RunConfig, str(run / RUN_NAME))
        self.total_steps: int = written["total_steps"]
        self.history, self.records = read_history(run, self.config), Records(run / "metrics.jsonl")
        self.tokens = self._found(tokens or self.history.tokens)
        self.index = self._read_index()
        self.provenance, self.rows = Provenance(self.tokens, self.index), InputRows(self.index)
        self.cut = lru_cache(maxsize=8)(self._cut)

    def step(self, step: int) -> SeenStep:
        """What `step` has read; of one that has not happened, what it will read if the run goes on as it is.

        Raises: ConfigError if the run has no such step; FormatError if it is not known.
        """
        if not 1 <= step <= max(self.total_steps, self.records.last_step):
            raise ConfigError(f"step {step:,} is none of {self.run}: 1 to {self.total_steps:,} is wanted")
        if (stretch := self.history.of(step)) is None:
            raise FormatError(f"{self.run} was not started yet (no start in events.jsonl): wait for its first step")
        reading = self._reading(stretch)
        self._compare(reading, step)
        first = reading.position(step)
        positions = range(first, first + reading.data.global_batch)
        places = reading.order.locate(reading.order.chunks(positions))
        parts = self.provenance.parts(reading.view.spans(*places))
        chunks = [
            _seen_by(
                reading, SeenChunk(position, position // reading.order.num_training, *place, None, None, None, part)
            )
            for position, place, part in zip(
                positions, zip(*(p.tolist() for p in places), strict=True), parts, strict=True
            )
        ]
        length = reading.data.sequence_length
        return SeenStep(step, *self._outcome(step), stretch.told, length, chunks)

    def sightings(self, source: str, row: int) -> list[Sighting]:
        """Where the document in that row of an input file was seen and will be, by steps; see `SeenChunk` for order.

        Raises: FormatError if there is no such row, or it is not known what a step has read.
        """
        where = self.rows.shard_row(source, row)
        done = self.records.last_step
        found = [
            sighting
            for stretch, last in self.history.until(max(self.total_steps, done))
            for sighting in self._in_stretch(stretch, last, where)
        ]
        found += [
            replace(sighting, state="undone", learned=False)
            for stretch, last in self.history.undone
            for sighting in self._in_stretch(stretch, last, where)
        ]
        return sorted(found, key=lambda sighting: (sighting.step, sighting.chunk.position))

    def document_chunks(self, view: View, where: ShardRow) -> list[int]:
        """Offsets of the chunks that have any of a document."""
        ids = self.provenance.ids(where.shard, where.row)
        return view.holding(where.shard, ids).tolist() if ids else []

    def _in_stretch(self, stretch: Stretch, last: int, where: ShardRow) -> Iterator[Sighting]:
        reading = self._reading(stretch)
        first, end = reading.position(stretch.after + 1), reading.position(last + 1)
        bounds, size = reading.order.bounds, reading.order.num_training
        row = self.index.shards[where.shard].first_row + where.row
        for offset in self.document_chunks(reading.view, where):
            if int(bounds[where.shard]) + offset >= size:  # held out
                continue
            for epoch in range(first // size, -(-end // size)):
                position = reading.order.position(Cursor(epoch, where.shard, offset))
                if first <= position < end:
                    yield self._sighting(reading, position, epoch, (where.shard, offset), row)

    def _sighting(self, reading: Reading, position: int, epoch: int, place: tuple[int, int], row: int) -> Sighting:
        step = reading.step(position)
        spans = reading.view.spans(*reading.order.locate(reading.order.chunks(range(position, position + 1))))
        mine = [part for part in self.provenance.parts(spans)[0] if part.row == row]
        chunk = SeenChunk(position, epoch, *place, None, None, None, mine)
        state, learned, _ = self._outcome(step)
        return Sighting(step, state, learned, _seen_by(reading, chunk))

    def _outcome(self, step: int) -> tuple[State, bool | None, float | None]:
        if step > self.records.last_step:
            return "to come", None, None
        record = self.records.of(step)
        return "done", record and record["loss"] is not None, record and record["loss"]

    def _reading(self, stretch: Stretch) -> Reading:
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

    def _compare(self, reading: Reading, step: int) -> None:
        """Raises: FormatError if the record of a step has it end at another place than was worked out."""
        if (record := self.records.of(step)) is None:
            return
        worked_out = reading.order.cursor(reading.position(step + 1))
        if worked_out != _cursor(record):
            raise FormatError(
                f"{self.run}/metrics.jsonl has step {step} end at {tuple(_cursor(record))}, by events.jsonl it does at "
                f"{tuple(worked_out)} (epoch, shard, offset): one of them is not whole, so what it read is not known"
            )

    def _cut(self, data: DataConfig) -> tuple[View, ReadingOrder]:
        model = self.config.model
        positions = max(model.max_position_embeddings, data.sequence_length)  # it may have had a longer one before
        config = replace(self.config, data=data, model=replace(model, max_position_embeddings=positions))
        view = open_view(self.tokens, self.index, config)
        if view.packing != self.identity.get("packing"):
            found, wanted = str(view.packing)[:12], str(self.identity.get("packing"))[:12]
            raise FormatError(f"{self.run} was trained with packing {wanted}, {self.tokens} has {found}: make it again")
        return view, reading_order(view, config)

    def _found(self, tokens: Path | None) -> Path:
        if tokens is None:
            raise FormatError(f"{self.run} does not say where its dataset is: give it with --tokens")
        if not tokens.is_dir():
            wanted = self.identity["dataset"][:12]
            raise FormatError(f"{tokens} is gone, {self.run} was trained on it: give dataset {wanted} with --tokens")
        return tokens

    def _read_index(self) -> Index:
        index = read_index(self.tokens)
        if index.fingerprint != self.identity["dataset"]:
            found, wanted = index.fingerprint[:12], self.identity["dataset"][:12]
            raise FormatError(
                f"{self.run} was trained on dataset {wanted}, {self.tokens} is {found}: give the one it had with --tokens"
            )
        return index


def _cursor(record: dict[str, int]) -> Cursor:
    return Cursor(*(record[name] for name in Cursor._fields))


def _seen_by(reading: Reading, chunk: SeenChunk) -> SeenChunk:
    """The chunk with the rank and microbatch that had it, if its stretch knows its layout."""
    layout, microbatch, batch = reading.stretch.layout, reading.stretch.microbatch, reading.data.global_batch
    if layout is None or microbatch is None:
        return chunk
    number = (chunk.position - reading.start) % batch
    shares = [rank_positions(0, batch, dp_rank, layout.dp_size) for dp_rank in range(layout.dp_size)]
    dp_rank = next(dp_rank for dp_rank, share in enumerate(shares) if number in share)
    of_rank = (number - shares[dp_rank].start) // microbatch
    return replace(chunk, dp_rank=dp_rank, ranks=ranks_of(layout, dp_rank), microbatch=of_rank)
