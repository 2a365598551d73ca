"""The directories of a run's checkpoints: which there are, what is wrong with one, what becomes of it.

step-00001000                a checkpoint: it got its name when all of it was there and had been read back
step-00001000.0a1b2c3d.tmp   one that is being written or deleted, or that a kill has left so
damaged-step-00001000        one that was found damaged at a start, and is never chosen again nor deleted
replaced-step-00001000       one whose step was saved once more
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shared.directories import exists, last_change_s, listing, move, remove_tree, temporary_name, written_name
from shared.errors import FormatError, StorageError
from shared.files import size_of
from shared.storage import read_sealed, sha256_file
from train.collective import on_every_rank, on_first_rank, rank, world_size

MANIFEST_NAME = "MANIFEST.json"
FORMAT = "argonne-checkpoint"
VERSION = 1
STEP = re.compile(r"step-(\d{8,})")
ABANDONED_AFTER_S = 600.0
"""Seconds without a change after which nobody can be writing a checkpoint any more.

The run's lock keeps other starts away, but rank 0 alone holds it, and some file systems have no locks between machines:
other ranks of a start that died may still be in the middle of their last save.
"""


@dataclass(frozen=True)
class Unfinished:
    """A directory that is no checkpoint yet, or no more."""

    path: Path
    idle_s: float
    """Since anything in it changed."""

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody can be writing it any more."""
        return self.idle_s >= ABANDONED_AFTER_S


def step_path(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return directory / f"step-{step:08d}"


def checkpoints(directory: Path) -> list[Path]:
    """Checkpoints in the order of their steps, valid or not."""
    return sorted((path for path in listing(directory) if STEP.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """Step of the checkpoint at `path`."""
    return int(path.name.removeprefix("step-"))


def newest_step(directory: Path) -> int:
    """Step of the newest checkpoint that was committed, whatever happened to its files since; 0 without one."""
    committed = [path for path in checkpoints(directory) if exists(path / MANIFEST_NAME)]
    return step_of(committed[-1]) if committed else 0


def newest(directory: Path, until: int | None = None) -> tuple[Path | None, dict[Path, str]]:
    """The newest valid checkpoint, of step `until` or before, and what is wrong with each newer one.

    Every rank calls it.
    """
    problems: dict[Path, str] = {}
    for path in reversed(on_first_rank(partial(checkpoints, directory))):
        if until is not None and step_of(path) > until:
            continue
        problem = damage(path)
        if problem is None:
            return path, problems
        problems[path] = f"{path} is not used: {problem}"
    return None, problems


def nearest(directory: Path, step: int, damage: Callable[[Path], str | None]) -> tuple[Path | None, dict[Path, str]]:
    """The valid checkpoint whose step is nearest to `step`, of two the earlier, and what is wrong with nearer ones."""
    problems: dict[Path, str] = {}
    for path in sorted(checkpoints(directory), key=lambda path: (abs(step_of(path) - step), step_of(path))):
        problem = damage(path)
        if problem is None:
            return path, problems
        problems[path] = f"{path} is not used: {problem}"
    return None, problems


def damage(path: Path, group: dist.ProcessGroup | None = None) -> str | None:
    """What is wrong with a checkpoint's files, or None; the ranks of `group`, who all call it, share the reading."""
    return next((found for found in on_every_rank(partial(_check_share, path), group) if found), None)


def _check_share(path: Path) -> str | None:
    """What is wrong with the manifest or with a file that falls to this rank, or None."""
    try:
        files: dict[str, list[Any]] = _read_manifest(path)["files"]
        for name in sorted(files)[rank() :: world_size()]:
            file = path / name
            if [size_of(file), sha256_file(file)] != files[name]:
                return f"{file} does not match its checksum"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (FormatError, StorageError) as error:
        return str(error)
    return None


def _read_manifest(path: Path) -> dict[str, Any]:
    """Raises: FormatError if it is damaged or of another version; FileNotFoundError."""
    manifest = read_sealed(path / MANIFEST_NAME)
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        found = f"{manifest.get('format')} version {manifest.get('version')}"
        raise FormatError(f"it is {found}, not {FORMAT} version {VERSION}")
    return manifest


def read_manifests(directory: Path) -> list[dict[str, Any]]:
    """The manifests of all checkpoints in the order of their steps, but for damaged ones, which `newest` tells of."""
    manifests = []
    for path in checkpoints(directory):
        with suppress(FileNotFoundError, FormatError):
            manifests.append(_read_manifest(path))
    return manifests


def set_aside(path: Path, word: str) -> Path:
    """Keep a checkpoint under a name by which it is never chosen; that name."""
    names = (path.with_name(f"{word}-{path.name}{'' if number == 1 else f'.{number}'}") for number in range(1, 10**6))
    aside = next(name for name in names if not exists(name))
    move(path, aside)
    return aside


def unfinished(directory: Path) -> list[Unfinished]:
    """What saves and deletions have under way in `directory`, or have left there when they were killed."""
    names = [path for path in listing(directory) if STEP.fullmatch(written_name(path.name) or "")]
    changes = [(path, last_change_s(path)) for path in names]
    return [Unfinished(path, time.time() - changed_s) for path, changed_s in changes if changed_s is not None]


def sweep(directory: Path) -> list[Unfinished]:
    """Delete what is abandoned in `directory`; everything unfinished that was found there."""
    found = unfinished(directory)
    for left in found:
        if left.is_abandoned:
            remove_tree(left.path)
    return found


def take_over(directory: Path) -> list[Unfinished]:
    """As `sweep`, for the start of a run; what may still be written gets another name.

    So nobody from before, whom a lock that was lost or stolen does not stop, can make a checkpoint of it.
    """
    for left in unfinished(directory):
        if not left.is_abandoned:
            move(left.path, temporary_name(directory / str(written_name(left.path.name))))
    return sweep(directory)


def prune(directory: Path, newest_kept: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints up to `newest_kept`; a newer one is damaged and counts for nothing.

    Each is out of sight before any of it is deleted.
    """
    paths: Sequence[Path] = [path for path in checkpoints(directory) if step_of(path) <= step_of(newest_kept)]
    committed = [path for path in paths if exists(path / MANIFEST_NAME)]
    for path in committed[:-keep]:
        remove_tree(path)


def discard_after(kept: Path) -> None:
    """Delete the checkpoints of later steps, the newest first; for one rank, at a time when nobody saves."""
    for path in reversed(checkpoints(kept.parent)):
        if step_of(path) > step_of(kept):
            remove_tree(path)
