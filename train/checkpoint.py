"""A checkpoint is a new directory, and its manifest is written last: without a valid manifest it does not exist.

    <run>/checkpoints/step-00001000/*.distcp, .metadata   torch distributed checkpoint: every tensor under its name
    <run>/checkpoints/step-00001000/MANIFEST.json         sealed: where the run was, tensor shapes, file hashes

Tensors are named `model.<parameter>` and `optimizer.<parameter>.<state>`, so a checkpoint of any strategy on any number
of ranks continues under any other.
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from shared.cursor import Cursor
from shared.directories import remove_tree, sync_directory
from shared.errors import FormatError
from shared.storage import read_sealed, sha256_file, write_sealed
from train.collective import any_rank, barrier, gather, rank, world_size
from train.lengths import cursor_of
from train.optim import create_state

MANIFEST_NAME = "MANIFEST.json"
FORMAT = "argonne-checkpoint"
VERSION = 1


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


class Checkpoints:
    """The checkpoints of one run. Every rank calls every method, in the same order."""

    def __init__(self, directory: Path, keep: int, identity: dict[str, Any]) -> None:
        self.directory, self.keep, self.identity = directory, keep, identity

    def save(self, model: nn.Module, optimizer: Optimizer, progress: Progress) -> Path:
        """Write a checkpoint, verify it, then delete all but the newest `keep`.

        Raises: FormatError if a value is not finite or a written file does not read back; older ones stay.
        """
        tensors = training_tensors(model, optimizer)
        if any_rank(not all(_is_finite(tensor) for tensor in tensors.values())):
            raise FormatError(f"step {progress.step} has weights or optimizer state that are not finite: not saved")
        path = self.directory / f"step-{progress.step:08d}"
        if rank() == 0 and path.exists():
            remove_tree(path)  # left by a save that did not finish, or about to be written again with the same contents
        barrier()
        save(tensors, checkpoint_id=path)
        names = gather(sorted(file.name for file in path.iterdir()))[0]
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **self.identity,
            "step": progress.step,
            "cursor": progress.cursor._asdict(),
            "tokens": progress.tokens,
            "data_digest": progress.data_digest,
            "skipped": progress.skipped,
            "rng": {"seed": self.identity["recipe"]["training"]["seed"], "step": progress.step},  # all there is of it
            "tensors": _union(gather({name: _describe(tensor) for name, tensor in tensors.items()})),
            "files": _union(gather(_hash_share(path, names))),
        }
        if rank() == 0:
            sync_directory(self.directory)
            write_sealed(path / MANIFEST_NAME, manifest)
        barrier()
        problem = self.problem(path)
        if problem:
            raise FormatError(f"{path} does not read back as written ({problem}): older checkpoints are kept")
        if rank() == 0:
            self._prune(path)
        barrier()
        return path

    def newest(self, until: int | None = None) -> tuple[Path | None, list[str]]:
        """The newest valid checkpoint, of step `until` or before, and what is wrong with each newer one."""
        problems: list[str] = []
        for path in reversed(gather([p for p in _steps(self.directory) if until is None or _number(p) <= until])[0]):
            problem = self.problem(path)
            if problem is None:
                return path, problems
            problems.append(f"{path} is not used: {problem}")
        return None, problems

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> Progress:
        """Fill the model and the optimizer from a valid checkpoint; return where the run was.

        Raises: FormatError if it is of another dataset, packing or tokenizer, its tensors are not the model's, or it is
        in the middle of a chunk of this run's sequence length.
        """
        manifest = read_sealed(path / MANIFEST_NAME)
        for name in ("dataset", "packing", "tokenizer"):
            before, now = manifest.get(name), self.identity[name]  # there were no packings once
            if before != now:
                raise FormatError(
                    f"{path} was trained with {name} {str(before)[:12]}, this run has {str(now)[:12]}: "
                    "continue with the same one, or start another run directory"
                )
        length = self.identity["recipe"]["data"]["sequence_length"]
        if (cursor := cursor_of(manifest, length)) is None:
            raise FormatError(
                f"{path} is in the middle of a chunk of {length}: continue it with data.sequence_length "
                f"{manifest['recipe']['data']['sequence_length']}, to the end of one"
            )
        create_state(optimizer)
        load_tensors(path, training_tensors(model, optimizer), manifest)
        return Progress(
            manifest["step"], cursor, manifest["tokens"], manifest["data_digest"], manifest.get("skipped", 0)
        )

    def discard_after(self, path: Path) -> None:
        """Delete what is newer than `path`; for one rank, at a time when nobody saves."""
        for newer in _steps(self.directory):
            if _number(newer) > _number(path):
                remove_tree(newer)

    def problem(self, path: Path) -> str | None:
        """What is wrong with a checkpoint's files, or None; the ranks share the reading."""
        return next((found for found in gather(_check_share(path)) if found), None)

    def _prune(self, saved: Path) -> None:
        """Delete what is older than the newest `keep`; what is newer than `saved` is damaged and counts for nothing."""
        steps = _steps(self.directory)
        committed = [path for path in steps[: steps.index(saved) + 1] if (path / MANIFEST_NAME).is_file()]
        for path in committed[: -self.keep]:
            remove_tree(path)


def training_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor of this rank that a run needs to continue, by name; loading into them loads the run."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def load_tensors(path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Fill `tensors` in place from the checkpoint at `path`.

    Raises: FormatError if over all ranks they are not exactly the checkpoint's in name, shape and dtype.
    """
    wanted = _union(gather({name: _describe(tensor) for name, tensor in tensors.items()}))
    kinds = {name.split(".")[0] for name in wanted}  # to sample, the model alone is wanted
    found = {name: tensor for name, tensor in manifest["tensors"].items() if name.split(".")[0] in kinds}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise FormatError(
                f"{path}: {name} is {found.get(name, 'absent')}, the model wants {wanted.get(name, 'none of it')}: "
                "the checkpoint is of another architecture"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        load(tensors, checkpoint_id=path)


def read_manifests(directory: Path) -> list[dict[str, Any]]:
    """The manifests of all checkpoints in the order of their steps, but for damaged ones, which `newest` tells of."""
    return [read_sealed(path / MANIFEST_NAME) for path in _steps(directory) if _manifest_problem(path) is None]


def newest_step(directory: Path) -> int:
    """Step of the newest checkpoint that was committed, whatever happened to its files since; 0 without one."""
    committed = [path for path in _steps(directory) if (path / MANIFEST_NAME).is_file()]
    return _number(committed[-1]) if committed else 0


def _steps(directory: Path) -> list[Path]:
    """Checkpoint directories in the order of their steps, valid or not."""
    paths = (path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))
    return sorted(paths, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _hash_share(path: Path, names: list[str]) -> dict[str, list[Any]]:
    """Size and sha256 of the files that fall to this rank."""
    mine = names[rank() :: world_size()]
    return {name: [(path / name).stat().st_size, sha256_file(path / name)] for name in mine}


def _check_share(path: Path) -> str | None:
    """What is wrong with the manifest or with a file that falls to this rank, or None."""
    if problem := _manifest_problem(path):
        return problem
    files = read_sealed(path / MANIFEST_NAME)["files"]
    try:
        found = _hash_share(path, sorted(files))
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    damaged = [name for name, file in found.items() if file != files[name]]
    return f"{path / damaged[0]} does not match its checksum" if damaged else None


def _manifest_problem(path: Path) -> str | None:
    """What is wrong with the manifest of a checkpoint, or None."""
    try:
        manifest = read_sealed(path / MANIFEST_NAME)
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except FormatError as error:
        return str(error)
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        return f"it is {manifest.get('format')} version {manifest.get('version')}, not {FORMAT} version {VERSION}"
    return None


def _is_finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return bool(torch.isfinite(local).all())


def _describe(tensor: Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _union(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in sorted(part.items())}
