"""Spikes: telling of one and, where the recipe asks for it, going back behind it and on past the data read since."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shared.cursor import Cursor
from shared.errors import ConfigError, UserError
from shared.storage import read_sealed, write_sealed
from train.checkpoint import Progress
from train.checkpoint_directory import discard_after
from train.collective import barrier, gather, rank
from train.parts import Parts
from train.patience import SETUP
from train.spikes import WINDOW

ROLLBACKS_NAME = "rollbacks.json"


@dataclass(frozen=True)
class Skip:
    """A stretch of data that a run does not train on: from where a checkpoint was to behind a spike.

    It is told in chunks of one token, so that it is the same for a run that goes on at another sequence length.
    """

    step: int
    """Of the checkpoint."""
    start: Cursor
    end: Cursor

    @classmethod
    def of_chunks(cls, step: int, start: Cursor, end: Cursor, length: int) -> "Skip":
        """The stretch between two cursors that count chunks of `length`."""
        return cls(step, start.in_tokens(length), end.in_tokens(length))


def after_spike(parts: Parts, progress: Progress, scores: Mapping[str, float]) -> Progress | None:
    """Tell of the spike at `progress`; where the run goes on from instead, if the recipe asks for that.

    Model and optimizer are then those of the newest checkpoint that is old enough, the cursor stays behind the spike.
    What is skipped is written down first, so that a run that is killed skips it again. Every rank must call it.

    Raises: UserError if the run has skipped more already than the recipe puts up with.
    """
    recovery, step = parts.config.recovery, progress.step
    told = ", ".join(f"{name} {score:.1f} standard deviations above its median" for name, score in scores.items())
    order, batch = parts.reader.order, parts.config.data.global_batch
    documents = parts.provenance.documents(parts.reader.spans(order.position(progress.cursor) - batch))
    parts.log.event("spike", problem=f"step {step}: {told}", step=step, scores=dict(scores), documents=documents)
    if recovery.rollback_steps is None or "loss" not in scores:
        return None
    path = parts.checkpoints.until(step - recovery.rollback_steps)
    if path is None:
        wanted = f"of step {step - recovery.rollback_steps} or earlier"
        parts.log.event("warning", problem=f"no checkpoint {wanted} to go back to: raise checkpoint.keep")
        return None
    if progress.skipped >= recovery.max_skipped_steps:
        raise UserError(
            f"step {step}: another spike, and recovery.max_skipped_steps is {recovery.max_skipped_steps}: lower "
            "optimizer.learning_rate, or look at the documents in events.jsonl, then start again"
        )
    parts.heartbeat.beat(step, SETUP)
    earlier = parts.checkpoints.load(path, parts.strategy.model, parts.optimizer)
    if rank() == 0:
        skip = Skip.of_chunks(earlier.step, earlier.cursor, progress.cursor, parts.config.data.sequence_length)
        _write_down(parts.log.directory, skip)
        discard_after(path)
    barrier()
    behind = {"step": step, "to": earlier.step, "cursor": progress.cursor, **parts.log.done_since(earlier.step)}
    parts.log.event("rollback", problem=f"back to step {earlier.step} and on behind the spike", **behind)
    parts.log.rewind(earlier.step)
    parts.spikes.restart(gather(parts.log.recent(WINDOW))[0])
    return replace(earlier, cursor=progress.cursor, skipped=progress.skipped + 1)


def skip_again(directory: Path, progress: Progress, length: int) -> Progress:
    """Where a run in chunks of `length` goes on from that has gone back to the checkpoint of `progress` before.

    Raises: ConfigError if that is in the middle of a chunk.
    """
    for skip in _written_down(directory):
        if (skip.step, skip.start) == (progress.step, progress.cursor.in_tokens(length)):
            if (end := skip.end.at_length(1, length)) is None:
                raise ConfigError(
                    f"{directory} goes on behind a spike, {skip.end.offset % length} tokens into a chunk of {length}: "
                    "continue it with the data.sequence_length it had, to its next checkpoint"
                )
            return replace(progress, cursor=end, skipped=progress.skipped + 1)
    return progress


def _write_down(directory: Path, new: Skip) -> None:
    others = [skip for skip in _written_down(directory) if (skip.step, skip.start) != (new.step, new.start)]
    write_sealed(directory / ROLLBACKS_NAME, {"skips": [asdict(skip) for skip in (*others, new)]})


def _written_down(directory: Path) -> list[Skip]:
    path = directory / ROLLBACKS_NAME
    if not path.is_file():
        return []
    return [Skip(skip["step"], Cursor(*skip["start"]), Cursor(*skip["end"])) for skip in read_sealed(path)["skips"]]
