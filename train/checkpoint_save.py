"""One save: checked, written beside the checkpoints, read back, and only then one of them.

It talks to other ranks by its own process group alone, so that it can go on in a thread while the run trains. Whatever
fails on one rank is known on all of them, and leaves the older checkpoints as they were.
"""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shared.directories import exists, make_directory, move, remove_tree, temporary_name
from shared.errors import FormatError, StorageError
from shared.storage import write_sealed
from train.checkpoint_directory import (
    FORMAT,
    MANIFEST_NAME,
    VERSION,
    Unfinished,
    damage,
    prune,
    set_aside,
    step_path,
    sweep,
)
from train.checkpoint_files import FileRecord, write_tensors
from train.collective import any_rank, gather, on_first_rank
from train.tensors import describe, local_values, union


class SaveError(StorageError):
    """A checkpoint that could not be written or did not read back; the ones before it are as they were."""

    def __init__(self, path: Path, reason: str, size_bytes: int) -> None:
        super().__init__(path, reason, size_bytes)
        self.path, self.reason, self.size_bytes = path, reason, size_bytes

    def __str__(self) -> str:
        return f"{self.path} was not saved ({self.size_bytes:,} bytes), older checkpoints are kept: {self.reason}"


@dataclass(frozen=True)
class Saving:
    """What is saved on this rank, as it was when the save began."""

    directory: Path
    keep: int
    step: int
    document: Mapping[str, Any]
    """What the manifest says of the run."""
    tensors: dict[str, Tensor]
    """They say what part of the whole is here."""
    values: Mapping[str, Tensor]
    """Their values, which nothing else changes until the save has ended."""
    group: dist.ProcessGroup | None
    """Of all ranks."""

    @property
    def path(self) -> Path:
        """The checkpoint to be."""
        return step_path(self.directory, self.step)


@dataclass(frozen=True)
class Saved:
    """A save that has ended well."""

    path: Path
    step: int
    size_bytes: int
    save_s: float
    swept: list[Unfinished]
    problem: str | None
    """Why something old could not be deleted."""


class HostCopies:
    """Copies of a run's tensors in host memory, which is taken once and used by every save."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of host memory in use."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank holds of `tensors` now, to be changed by nothing but the next call."""
        values = local_values(tensors)
        for name, value in values.items():
            if name not in self._buffers:
                self._buffers[name] = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self._buffers[name].copy_(value, non_blocking=True)
        if any(value.is_cuda for value in values.values()):
            torch.cuda.current_stream().synchronize()
        return {name: self._buffers[name] for name in values}


def save_checkpoint(saving: Saving) -> Saved:
    """Write a checkpoint, verify it, give it its name, delete all but the newest. Every rank of the group calls it.

    Raises: FormatError if a value is not finite; SaveError if the disk refuses or does not give back what was written.
    """
    began_s, group = time.monotonic(), saving.group
    if any_rank(not all(map(_is_finite, saving.values.values())), group):
        raise FormatError(f"step {saving.step} has weights or optimizer state that are not finite: not saved")
    described = describe(saving.tensors, group)
    temporary = on_first_rank(partial(temporary_name, saving.path), group)
    try:
        on_first_rank(partial(make_directory, temporary), group)
        _fill(temporary, saving, described)
        on_first_rank(partial(_commit, temporary, saving.path), group)
    except (StorageError, FormatError, OSError) as error:
        left = on_first_rank(partial(_drop, temporary), group)
        raise SaveError(saving.path, f"{error}{_room(saving.directory)}{left}", _size_bytes(described)) from error
    swept, problem = on_first_rank(partial(_tidy, saving), group)
    return Saved(
        saving.path, saving.step, _size_bytes(described), time.monotonic() - began_s, swept=swept, problem=problem
    )


def _fill(directory: Path, saving: Saving, described: dict[str, list[Any]]) -> None:
    """Write everything into `directory`, the manifest last, and read it back.

    Raises: FormatError if something else is read than was written.
    """
    files: dict[str, FileRecord] = write_tensors(directory, saving.tensors, saving.values, saving.group)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **saving.document,
        "tensors": described,
        "files": union(gather(files, saving.group)),
    }
    on_first_rank(partial(write_sealed, directory / MANIFEST_NAME, manifest), saving.group)
    problem = damage(directory, saving.group)
    if problem is not None:
        raise FormatError(f"it does not read back as written ({problem})")


def _commit(temporary: Path, path: Path) -> None:
    """Make what is whole a checkpoint."""
    if exists(path):
        set_aside(path, "replaced")
    move(temporary, path)


def _drop(temporary: Path) -> str:
    """Delete what was written, so that a full disk gets its room back; what there is to say if that fails."""
    try:
        if exists(temporary):
            remove_tree(temporary)
    except StorageError as error:
        return f"; nor could {temporary} be deleted, which a later save does ({error})"
    return ""


def _tidy(saving: Saving) -> tuple[list[Unfinished], str | None]:
    """Delete older checkpoints and what was abandoned; the latter, and what there is to say if that fails."""
    try:
        prune(saving.directory, saving.path, saving.keep)
        return [left for left in sweep(saving.directory) if left.is_abandoned], None
    except StorageError as error:
        return [], str(error)


def _room(directory: Path) -> str:
    return f"; {shutil.disk_usage(directory).free:,} bytes are free there" if directory.exists() else ""


def _size_bytes(described: dict[str, list[Any]]) -> int:
    return sum(getattr(torch, dtype).itemsize * torch.Size(shape).numel() for dtype, shape in described.values())


def _is_finite(value: Tensor) -> bool:
    """Whether all elements are; by the least and the largest, which are nan if any is."""
    return value.numel() == 0 or all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(value))
