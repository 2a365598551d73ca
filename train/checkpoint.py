"""The checkpoints of a run: begun while it trains, found again when it starts, loaded by any strategy on any ranks.

    <run>/checkpoints/step-00001000/*.distcp, .metadata   torch distributed checkpoint: every tensor under its name
    <run>/checkpoints/step-00001000/MANIFEST.json         sealed: where the run was, tensor shapes, file hashes

Tensors are named `model.<parameter>` and `optimizer.<parameter>.<state>`, so a checkpoint of any strategy on any number
of ranks continues under any other.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from shared.cursor import Cursor
from shared.errors import FormatError
from shared.storage import read_sealed
from train.checkpoint_directory import MANIFEST_NAME, newest, set_aside, take_over
from train.checkpoint_save import HostCopies, Saved, SaveError, Saving, save_checkpoint
from train.collective import any_rank, on_first_rank
from train.lengths import cursor_of
from train.optim import create_state
from train.tensors import load_tensors, local_values, training_tensors


@dataclass(frozen=True)
class Progress:
    """Where a run is after `step` optimizer steps."""

    step: int
    cursor: Cursor
    """The next chunk to train on."""
    tokens: int
    """Targets trained on."""
    data_digest: str
    """Chained hash of every batch, in reading order."""
    skipped: int = 0
    """Steps that changed no weight, because of their loss or gradient, and rollbacks."""

    def as_manifest(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {
            "step": self.step,
            "cursor": self.cursor._asdict(),
            "tokens": self.tokens,
            "data_digest": self.data_digest,
            "skipped": self.skipped,
        }

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any], cursor: Cursor) -> "Progress":
        """What a manifest says; `cursor` is its own in chunks of this run's length."""
        return cls(manifest["step"], cursor, manifest["tokens"], manifest["data_digest"], manifest.get("skipped", 0))


def _say_nothing(name: str, **details: Any) -> None:
    del name, details


class Checkpoints:
    """The checkpoints of one run. Every rank calls every method, in the same order.

    Asynchronous: `save` comes back when the tensors are copied to host memory, and the rest is done by a thread, over a
    process group of its own. How it went is told by `report`, an event, at the next call here that finds it ended.
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        identity: dict[str, Any],
        *,
        asynchronous: bool = False,
        report: Callable[..., None] = _say_nothing,
        begin: Cursor = Cursor(0, 0, 0),  # noqa: B008
    ) -> None:
        self.directory, self.keep, self.identity, self.report = directory, keep, identity, report
        self.begin = begin
        """Where an imported model goes on, which has read nothing of this dataset."""
        self.saved_step = 0
        """Of the last checkpoint that was saved or loaded."""
        self._copies = HostCopies() if asynchronous else None
        self._group = dist.new_group(backend="gloo") if asynchronous and dist.is_initialized() else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._pending: Future[Saved] | None = None
        self._stall_s = 0.0
        self._failure: SaveError | None = None

    def save(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """Begin to save, once the save before has ended; the model may change when this returns.

        Raises: as `wait`.
        """
        began_s = time.monotonic()
        self.wait()
        tensors = training_tensors(model, optimizer)
        rng = {"seed": self.identity["recipe"]["training"]["seed"], "step": progress.step}  # all there is of it
        saving = Saving(
            directory=self.directory,
            keep=self.keep,
            step=progress.step,
            document={**self.identity, **progress.as_manifest(), "rng": rng},
            tensors=tensors,
            values=self._copies.take(tensors) if self._copies else local_values(tensors),
            group=self._group,
        )
        self._pending = self._thread.submit(save_checkpoint, saving)
        self._stall_s = time.monotonic() - began_s
        if self._copies is None:
            self.wait()

    def check(self) -> None:
        """Tell how a save went, if it has ended on any rank.

        Raises: as `wait`.
        """
        if self._pending is not None and any_rank(self._pending.done()):
            self.wait()

    def wait(self) -> None:
        """Wait until no save is under way, and tell how the last one went; one that the disk refused is an event.

        Raises: FormatError on every rank if a value that was to be saved is not finite.
        """
        if self._pending is None:
            return
        began_s = time.monotonic()
        pending, self._pending = self._pending, None
        try:
            saved = pending.result()
        except SaveError as failure:
            self._failure = failure
            self.report("save-failed", path=str(failure.path), size_bytes=failure.size_bytes, problem=str(failure))
            return
        self.saved_step = saved.step
        stall_s = self._stall_s + time.monotonic() - began_s
        self.report(
            "save",
            step=saved.step,
            path=str(saved.path),
            size_bytes=saved.size_bytes,
            copy_bytes=self._copies.size_bytes if self._copies else 0,
            save_s=round(saved.save_s, 3),
            stall_s=round(stall_s, 3),
        )
        for left in saved.swept:
            self.report("swept", path=str(left.path), idle_s=round(left.idle_s))
        if saved.problem is not None:
            self.report("warning", problem=f"older checkpoints were not deleted: {saved.problem}")

    def finish(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
        """Make sure that `progress` is saved: wait for the save that is under way; if it is of less or failed, save.

        Raises: SaveError if that fails; as `wait`.
        """
        self.wait()
        if progress.step != self.saved_step:
            self.save(model, optimizer, progress)
            self.wait()
        if progress.step != self.saved_step and self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Wait for the save that is under way, and give back what it needed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            group, self._group = self._group, None
            if group is not None:
                dist.destroy_process_group(group)

    def recover(self) -> Path | None:
        """The newest valid checkpoint; abandoned saves are deleted, newer checkpoints that are damaged set aside.

        Raises: FormatError if there are checkpoints but no valid one; they stay as they are.
        """
        for left in on_first_rank(partial(take_over, self.directory)):
            idle = f"{left.path} is unfinished, last written to {left.idle_s:.0f} s ago"
            if left.is_abandoned:
                self.report("swept", path=str(left.path), idle_s=round(left.idle_s))
            else:
                self.report("unfinished", problem=f"{idle}: kept, for a rank of an earlier start may still be alive")
        path, problems = newest(self.directory)
        if path is None and problems:
            told = "; ".join(problems.values())
            raise FormatError(f"{told}: mend one of them, or name another directory to start from nothing")
        for damaged, problem in problems.items():
            aside = on_first_rank(partial(set_aside, damaged, "damaged"))
            self.report("damaged", problem=f"{problem}; it is set aside as {aside.name}")
        return path

    def until(self, step: int) -> Path | None:
        """The newest valid checkpoint of `step` or before, once nothing is being saved.

        Raises: as `wait`.
        """
        self.wait()
        return newest(self.directory, step)[0]

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> Progress:
        """Fill the model and the optimizer from a valid checkpoint; return where the run was.

        Raises: FormatError if it is of another dataset, packing or tokenizer, its tensors are not the model's, or it is
        in the middle of a chunk of this run's sequence length.
        """
        manifest = on_first_rank(partial(read_sealed, path / MANIFEST_NAME))
        for name in ("dataset", "packing", "tokenizer"):
            before, now = manifest.get(name), self.identity[name]  # there were no packings once
            if before != now and not (before is None and "imported" in manifest):
                raise FormatError(
                    f"{path} was trained with {name} {str(before)[:12]}, this run has {str(now)[:12]}: "
                    "continue with the same one, or start another run directory"
                )
        length = self.identity["recipe"]["data"]["sequence_length"]
        cursor = cursor_of(manifest, length) if manifest["cursor"] else self.begin
        if cursor is None:
            raise FormatError(
                f"{path} is in the middle of a chunk of {length}: continue it with data.sequence_length "
                f"{manifest['recipe']['data']['sequence_length']}, to the end of one"
            )
        create_state(optimizer)
        tensors = training_tensors(model, optimizer)
        if not any(name.startswith("optimizer.") for name in manifest["tensors"]):  # weights alone were imported
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
        load_tensors(path, tensors, manifest)
        progress = Progress.of_manifest(manifest, cursor)
        self.saved_step = progress.step
        return progress
