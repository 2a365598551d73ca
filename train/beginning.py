"""Where a run begins that goes on from another one's checkpoint: with its weights, and behind what that has read.

Each of the two is a run with a recipe of its own: length, mixture and schedule may be others. So pretraining, a longer
context and a cooldown on better data are three runs, each begun from the one before.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shared.config import structure
from shared.cursor import Cursor, ReadingOrder
from shared.directories import exists
from shared.errors import ConfigError, FormatError
from shared.mixed_order import MixedOrder, Order, next_unread, parts_of
from shared.storage import read_sealed
from train.config import RunConfig
from train.datasets import Dataset, Datasets
from train.lengths import why_other_tokens
from train.request import RunRequest
from train.run_files import CHECKPOINTS_NAME, RUN_NAME

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from train.replay import Replay

OptimizerState = Literal["kept", "reset"]
ORDERING = ("order", "shuffle_length", "packing", "validation")
"""Of [data], what the order of a dataset's tokens depends on."""


@dataclass(frozen=True)
class Beginning:
    """What a run began from; a part of what it is."""

    run: str
    """Directory of the other run, as it was called then."""
    step: int
    """Of its checkpoint."""
    data_digest: str
    """Of all that was read until there."""
    starts: tuple[int, ...]
    """The position in each dataset of this run from which on nothing was read yet in the other one's epoch."""
    optimizer: OptimizerState = "kept"


@dataclass(frozen=True)
class Taken:
    """How far a run has come in one dataset, and how it has read it."""

    run: Path
    config: RunConfig
    order: ReadingOrder
    position: int


def beginning_of(request: RunRequest, datasets: Datasets, order: Order, config: RunConfig) -> Beginning | None:
    """What the run that is asked for began from, or will begin from; None if from nothing.

    Raises: ConfigError if it is asked for another beginning than it had; as `find_beginning`.
    """
    path, asked = request.run / RUN_NAME, request.begin_from
    if exists(path):
        told = read_sealed(path)["identity"].get("beginning")
        had = None if told is None else structure(told, Beginning, str(path))
        if asked is not None and (had is None or Path(had.run) != asked.resolve()):
            raise ConfigError(
                f"{request.run} is there already and began from {had.run if had else 'nothing'}, not from {asked}: "
                "name another directory, or leave --begin-from out"
            )
        return had
    if asked is None:
        if request.reset_optimizer:
            raise ConfigError("--reset-optimizer is given without --begin-from: say which run to begin from")
        return None
    return find_beginning(asked, "reset" if request.reset_optimizer else "kept", datasets, order, config)


def find_beginning(run: Path, optimizer: OptimizerState, datasets: Datasets, order: Order, now: RunConfig) -> Beginning:
    """The newest checkpoint of `run`, and where `order`, of the datasets of this run, goes on from there.

    A dataset that the other run has not read goes on where the nearest of those has left it that it began from in turn.

    Raises: ConfigError if the other run has no checkpoint, or one of them has read a dataset of this run in another
    order; FormatError if one is no run any more, or what it read is gone.
    """
    from train.checkpoint_directory import read_manifests  # it needs torch, this module does not
    from train.replay import Replay

    replay, manifests = Replay(run), read_manifests(run / CHECKPOINTS_NAME)
    manifests = [manifest for manifest in manifests if manifest["cursor"]]  # an import has read nothing
    if not manifests:
        raise ConfigError(f"{run} has no checkpoint to begin from: train it until it has saved one")
    manifest = manifests[-1]
    before = structure(manifest["recipe"], RunConfig, str(run))
    found, wanted = replay.index.tokenizer.sha256, datasets.index.tokenizer.sha256
    if found != wanted:
        raise ConfigError(f"{run} was trained with tokenizer {found[:12]}, this run has {wanted[:12]}: one is wanted")
    order_before = replay.cut(before.data)[1]
    taken = taken_by(replay, before, order_before, order_before.position(Cursor(**manifest["cursor"])))
    all_here = {part.index.fingerprint for part in datasets.parts}
    while (earlier := replay.identity.get("beginning")) and not taken.keys() >= all_here:
        replay = Replay(Path(earlier["run"]))
        taken = taken_until(replay, earlier["step"]) | taken
    starts = [
        start(taken.get(part.index.fingerprint), part, own, now)
        for part, own in zip(datasets.parts, parts_of(order), strict=True)
    ]
    return Beginning(str(run.resolve()), manifest["step"], manifest["data_digest"], tuple(starts), optimizer)


def taken_until(replay: "Replay", step: int) -> dict[str, Taken]:
    """How far a run had come after `step` in each of its datasets, by fingerprint.

    Raises: FormatError if it is not known.
    """
    stretch = replay.history.of(step)
    assert stretch is not None, "a run that another one began from was started"
    reading = replay.reading(stretch)
    return taken_by(replay, replace(replay.config, data=reading.data), reading.order, reading.position(step + 1))


def taken_by(replay: "Replay", config: RunConfig, order: Order, position: int) -> dict[str, Taken]:
    """How far a run that is at `position` has come in each of its datasets, by fingerprint."""
    each = zip(replay.datasets.parts, parts_of(order), places(order, position), strict=True)
    return {part.index.fingerprint: Taken(replay.run, config, own, place) for part, own, place in each}


def places(order: Order, position: int) -> tuple[int, ...]:
    """Where a run that is at `position` is in each of its datasets."""
    return order.taken(position) if isinstance(order, MixedOrder) else (position,)


def start(taken: Taken | None, dataset: Dataset, order: ReadingOrder, now: RunConfig) -> int:
    """Where to begin in a dataset that is read in `order`, of which so much was taken.

    Raises: ConfigError if that was in another order.
    """
    if taken is None:
        return 0
    if why := why_read_twice(taken.config, now):
        raise ConfigError(f"{taken.run} has read {dataset.tokens} in another order ({why}): give what it had")
    return next_unread(taken.order, taken.config.data.sequence_length, taken.position, order, now.data.sequence_length)


def why_read_twice(before: RunConfig, now: RunConfig) -> str | None:
    """Why a dataset that both runs read might be read twice; None if its tokens stand in one order in both."""
    for name, was, new in (
        ("training.seed", before.training.seed, now.training.seed),
        *((f"data.{name}", getattr(before.data, name), getattr(now.data, name)) for name in ORDERING),
    ):
        if was != new:
            return f"{name} was {was}, now {new}"
    held_out = [run.data.validation_chunks * run.data.sequence_length for run in (before, now)]
    if held_out[0] != held_out[1]:
        return f"{held_out[0]} tokens were held out, now {held_out[1]}"
    if before.data.sequence_length == now.data.sequence_length:
        return None
    return why_other_tokens(before.data, now.data)


def load_beginning(beginning: Beginning, model: "nn.Module", optimizer: "Optimizer") -> None:
    """Fill the model, and if that is kept the optimizer, from the other run's checkpoint. Every rank must call it.

    Raises: FormatError if it is gone, damaged or of another architecture.
    """
    from train.checkpoint_directory import MANIFEST_NAME, damage, step_path
    from train.collective import on_first_rank
    from train.optim import create_state
    from train.tensors import load_tensors, training_tensors

    path = step_path(Path(beginning.run) / CHECKPOINTS_NAME, beginning.step)
    if problem := damage(path):
        raise FormatError(f"{problem}: this run begins from it, put it back")
    create_state(optimizer)
    tensors: dict[str, Any] = training_tensors(model, optimizer)
    if beginning.optimizer == "reset":
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    load_tensors(path, tensors, on_first_rank(partial(read_sealed, path / MANIFEST_NAME)))
