"""Which documents a step of a run has seen, and at which steps a document was seen: arithmetic, in both directions.

From the dataset's index and what the run has written down; no step logs anything for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from shared.cursor import rank_positions
from shared.errors import ConfigError, FormatError
from shared.rows import InputRows, ShardRow
from train.grid import ranks_of
from train.history import Stretch
from train.provenance import Part, Provenance
from train.replay import Reading, Replay
from train.views import View

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


class Trace:
    """The documents of a run's steps."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.provenance = Provenance(replay.datasets)
        self.rows = InputRows(replay.index)

    def check(self, step: int) -> None:
        """Raises: ConfigError if the run has no such step."""
        last = max(self.replay.total_steps, self.replay.records.last_step)
        if not 1 <= step <= last:
            raise ConfigError(f"step {step:,} is none of {self.replay.run}: 1 to {last:,} is wanted")

    def step(self, step: int) -> SeenStep:
        """What `step` has read; of one that has not happened, what it will read if the run goes on as it is.

        Raises: ConfigError if the run has no such step; FormatError if it is not known.
        """
        self.check(step)
        if (stretch := self.replay.history.of(step)) is None:
            raise FormatError(
                f"{self.replay.run} was not started yet (no start in events.jsonl): wait for its first step"
            )
        reading = self.replay.reading(stretch)
        self.replay.compare(reading, step)
        first = reading.position(step)
        positions = range(first, first + reading.data.global_batch)
        places = reading.order.locate(reading.order.chunks(positions))
        parts = self.provenance.parts(reading.view.spans(*places))
        chunks = [
            _seen_by(reading, position, (shard, offset), documents)
            for position, shard, offset, documents in zip(positions, *(p.tolist() for p in places), parts, strict=True)
        ]
        length = reading.data.sequence_length
        return SeenStep(step, *self._outcome(step), stretch.told, length, chunks)

    def sightings(self, source: str, row: int) -> list[Sighting]:
        """Where the document in that row of an input file was seen and will be, in the order of the steps.

        Raises: FormatError if there is no such row, or it is not known what a step has read.
        """
        where = self.rows.shard_row(source, row)
        done = self.replay.records.last_step
        found = [
            sighting
            for stretch, last in self.replay.history.until(max(self.replay.total_steps, done))
            for sighting in self._in_stretch(stretch, last, where, compared=min(last, done))
        ]
        found += [
            replace(sighting, state="undone", learned=False)
            for stretch, last in self.replay.history.undone
            for sighting in self._in_stretch(stretch, last, where)
        ]
        return sorted(found, key=lambda sighting: (sighting.step, sighting.chunk.position))

    def _in_stretch(
        self, stretch: Stretch, last: int, where: ShardRow, compared: int | None = None
    ) -> Iterator[Sighting]:
        """The sightings up to step `last`; the place after step `compared` is held against its record."""
        reading = self.replay.reading(stretch)
        if compared is not None and compared > stretch.after:
            self.replay.compare(reading, compared)
        first, end = reading.position(stretch.after + 1), reading.position(last + 1)
        bounds = reading.order.bounds
        row = self.replay.index.shards[where.shard].first_row + where.row
        for offset in chunks_with(self.provenance, reading.view, where):
            for position in reading.order.times(int(bounds[where.shard]) + offset, range(first, end)):
                yield self._sighting(reading, position, (where.shard, offset), row)

    def _sighting(self, reading: Reading, position: int, place: tuple[int, int], row: int) -> Sighting:
        step = reading.step(position)
        spans = reading.view.spans(*reading.order.locate(reading.order.chunks(range(position, position + 1))))
        mine = [part for part in self.provenance.parts(spans)[0] if part.row == row]
        state, learned, _ = self._outcome(step)
        return Sighting(step, state, learned, _seen_by(reading, position, place, mine))

    def _outcome(self, step: int) -> tuple[State, bool | None, float | None]:
        if step > self.replay.records.last_step:
            return "to come", None, None
        if (record := self.replay.records.of(step)) is None:
            return "done", None, None
        return "done", record["loss"] is not None, record["loss"]


def chunks_with(provenance: Provenance, view: View, where: ShardRow) -> list[int]:
    """Offsets of the chunks of a shard that have any of a document; of a row without one there are none."""
    ids = provenance.ids(where.shard, where.row)
    return view.holding(where.shard, ids).tolist() if ids else []


def _seen_by(reading: Reading, position: int, place: tuple[int, int], documents: list[Part]) -> SeenChunk:
    """The chunk at a position, with the rank and microbatch that had it if its stretch knows its layout."""
    chunk = SeenChunk(position, reading.order.epoch(position), *place, None, None, None, documents)
    layout, microbatch, batch = reading.stretch.layout, reading.stretch.microbatch, reading.data.global_batch
    if layout is None or microbatch is None:
        return chunk
    number = (position - reading.start) % batch
    shares = [rank_positions(0, batch, dp_rank, layout.dp_size) for dp_rank in range(layout.dp_size)]
    dp_rank = next(dp_rank for dp_rank, share in enumerate(shares) if number in share)
    of_rank = (number - shares[dp_rank].start) // microbatch
    return replace(chunk, dp_rank=dp_rank, ranks=ranks_of(layout, dp_rank), microbatch=of_rank)
