"""Everything that can be wrong with a run, found before a process group exists: one mistake is one message."""

import json
import platform
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.config import structure, unstructure
from shared.cursor import Cursor
from shared.directories import exists, listing, written_name
from shared.errors import ConfigError
from shared.format import Index
from shared.locks import LOCK_NAME
from shared.mixed_order import MixedOrder, Order, parts_of
from shared.storage import read_sealed
from train.architecture import at_least
from train.beginning import Beginning, beginning_of
from train.config import RunConfig
from train.datasets import Datasets, open_datasets
from train.golden import check_tokenizer
from train.layout import Layout, lay_out
from train.lengths import LENGTHS, check_place, why_mixed, why_other_tokens
from train.loggers import check_loggers
from train.mixed_view import open_validation, view_of
from train.orders import reading_order, validation_order
from train.passes import check_passes, passes_at_end
from train.request import RunRequest
from train.room import check_room
from train.schedule import RESCHEDULING, first_difference
from train.views import View
from train.walltime import parse_deadline

RUN_NAME = "run.json"
CHECKPOINTS_NAME = "checkpoints"
IMPORTED_NAME = "imported.json"
"""Of a run that begins from a model that was made elsewhere."""
CHANGEABLE = {
    *("strategy", "pipeline", "fsdp", "recovery", "checkpoint", "training.microbatch", "training.validate_every"),
    *("training.compile", "training.activation_checkpointing", "training.checkpoint_stride"),
    *("data.global_batch", "model.max_position_embeddings"),
}
"""What of a recipe may differ when a run is continued: nothing that the order of its data depends on, and nothing that
its losses depend on but for the global batch, with which a run goes on where it was in its data (see also RESCHEDULING
and LENGTHS)."""

MAX_PASSES = re.compile(r"recipe\.data\.sources\.\d+\.max_passes")  # the order of the data does not depend on it


@dataclass(frozen=True)
class Prepared:
    """A request that was checked, with all that follows from it."""

    request: RunRequest
    config: RunConfig
    datasets: Datasets
    view: View
    order: Order
    layout: Layout
    beginning: Beginning | None = None
    validation: View | None = None
    validation_dataset: str | None = None

    @property
    def index(self) -> Index:
        """Of all that the run reads."""
        return self.datasets.index

    @property
    def starts(self) -> tuple[int, ...]:
        """The position in each dataset that the run began at; none if it began at the front of all."""
        return self.beginning.starts if self.beginning else ()

    @property
    def first(self) -> Cursor:
        """The first chunk of the run."""
        is_mixed = isinstance(self.order, MixedOrder)
        return self.order.cursor(0 if is_mixed or not self.starts else self.starts[0])

    @property
    def identity(self) -> dict[str, Any]:
        """What a run is; written into run.json and every checkpoint."""
        return {
            "recipe": unstructure(self.config),
            "dataset": self.index.fingerprint,
            "packing": self.view.packing,
            "tokenizer": self.index.tokenizer.sha256,
            **({"validation": self.validation_dataset} if self.validation_dataset else {}),
            **({"beginning": unstructure(self.beginning)} if self.beginning else {}),
            **({"sources": fingerprints} if (fingerprints := self.datasets.fingerprints) else {}),
        }

    @property
    def last_step(self) -> int:
        """Where this start of the run ends."""
        total = self.config.total_steps
        return total if self.request.stop_step is None else min(self.request.stop_step, total)


def prepare(request: RunRequest, world_size: int) -> Prepared:
    """The checked request.

    Raises: UserError of the first thing that is wrong with the recipe, the data, the layout, the memory or the run.
    """
    if request.stop_step is not None:
        at_least("stop-step", request.stop_step, 1)
    if request.deadline is not None:
        parse_deadline(request.deadline, time.time())
    check_loggers(request.loggers)
    _check_device(request)
    datasets = open_datasets(request.tokens, request.config.data)
    view = view_of(datasets, request.config)
    view.check()
    for part in datasets.parts:
        check_tokenizer(part.tokens, part.index)
    tokenizer = datasets.index.tokenizer
    model = request.config.model.resolved(tokenizer.vocab_size, tokenizer.end_of_document_id)
    config = replace(request.config, model=model)
    at_least("training.total_steps", config.total_steps, 1)
    _check_order(reading_order(view, config), config, datasets)
    beginning = beginning_of(request, datasets, reading_order(view, config), config)
    order = reading_order(view, config, beginning.starts if beginning else ())
    layout = lay_out(config, world_size)
    check_room(config, layout)
    validation = open_validation(datasets, config)
    _check_validation(validation, config, datasets)
    prepared = Prepared(request, config, datasets, view, order, layout, beginning, *(validation or ()))
    _check_run(prepared)
    check_passes(passes_at_end(config, order, request.run / CHECKPOINTS_NAME))
    return prepared


def _check_device(request: RunRequest) -> None:
    """Raises: ConfigError if this machine's devices cannot do what is asked for."""
    from train.float8 import check_float8
    from train.profiling import check_profiling

    check_profiling(request.profile, request.memory_snapshot)
    if request.config.training.precision == "float8":
        check_float8()
    if request.config.strategy == "pipeline":
        from train.stage import check_pipelining

        check_pipelining()


def _check_order(order: Order, config: RunConfig, datasets: Datasets) -> None:
    """Raises: ConfigError if less than a global batch is left to train on, or of a source nothing."""
    least = 1 if config.data.sources else config.data.global_batch
    for part, dataset in zip(parts_of(order), datasets.parts, strict=True):
        if part.num_training < least:
            raise ConfigError(
                f"{dataset.tokens} has {part.bounds[-1]} chunks of {config.data.sequence_length}, of which "
                f"data.validation_chunks reserves {part.num_held_out}{config.data.in_units}: "
                f"{'one' if config.data.sources else f'a global batch of {least}'} must be left to train on"
            )


def _check_validation(validation: tuple[View, str] | None, config: RunConfig, datasets: Datasets) -> None:
    """Raises: ConfigError if the validation split has too few chunks; FormatError if a file is not there in full."""
    if validation is None:
        return
    view, wanted = validation[0], config.data.validation_chunks
    view.check()
    for part, dataset in zip(parts_of(validation_order(view, config)), datasets.validation.parts, strict=True):
        if part.num_training < 0:
            raise ConfigError(
                f"{dataset.tokens} has {part.bounds[-1]} chunks of {config.data.sequence_length}, "
                f"data.validation_chunks wants {wanted}{config.data.in_units}: lower it, or tokenize with a larger "
                "--validation-share"
            )


def _check_end(step: int, total_steps: int) -> None:
    """Raises: ConfigError if an imported model is at the end of its schedule already."""
    if step >= total_steps:
        raise ConfigError(
            f"the imported model is at step {step:,}, training.total_steps {total_steps:,} is not after it: give "
            f"--training.total-steps, more than {step}"
        )


def _check_run(prepared: Prepared) -> None:
    """Raises: ConfigError if the directory holds a run of something else or at another place, or no run but files."""
    directory = prepared.request.run
    path = directory / RUN_NAME
    if not exists(path):
        names = [path.name for path in listing(directory)]
        # A run killed in its first moment leaves its locks and what it was writing.
        if IMPORTED_NAME not in names and any(
            not name.startswith(LOCK_NAME) and written_name(name) != RUN_NAME for name in names
        ):
            raise ConfigError(f"{directory} is not empty and not a run (no {RUN_NAME}): name another directory")
        if IMPORTED_NAME in names:
            _check_end(read_sealed(directory / IMPORTED_NAME)["step"], prepared.config.total_steps)
        return
    if not (changed := changes(prepared)):
        return
    before, now = structure(read_sealed(path)["identity"]["recipe"], RunConfig, str(path)), prepared.config
    has_other_length = before.data.sequence_length != now.data.sequence_length
    why = (why_mixed(before.data) or why_other_tokens(before.data, now.data)) if has_other_length else None
    changeable = CHANGEABLE | LENGTHS if has_other_length and why is None else CHANGEABLE
    may_differ = tuple(f"recipe.{key}" for key in changeable)
    fixed = [name for name in changed if not name.startswith(may_differ) and not MAX_PASSES.fullmatch(name)]
    differences = "; ".join(changed[name] for name in fixed) + (f" ({why})" if why else "")
    if any(name.removeprefix("recipe.") not in RESCHEDULING for name in fixed):
        raise ConfigError(f"{directory} is another run: {differences}: name another directory, or give what it had")
    _check_history(directory, before, now, "; ".join(changed.values()))
    if has_other_length:
        from train.checkpoint_directory import read_manifests

        manifests = read_manifests(directory / CHECKPOINTS_NAME)
        check_place(directory, manifests, prepared.datasets, now.data.sequence_length)


def _check_history(directory: Path, before: RunConfig, now: RunConfig, differences: str) -> None:
    """Raises: ConfigError if a step that the run has done would have had another learning rate."""
    from train.checkpoint_directory import newest_step  # it needs torch, this module does not

    num_steps = newest_step(directory / CHECKPOINTS_NAME)
    step = first_difference(before, now, num_steps)
    if step is not None:
        raise ConfigError(
            f"{directory} is at step {num_steps}, and step {step} would have had another learning rate "
            f"({differences}): give what it had, or continue a copy whose newest checkpoint is of step {step - 1} or "
            "earlier"
        )


def changes(prepared: Prepared) -> dict[str, str]:
    """What differs from the run that is in the directory, if one is, by name.

    An option that there was not when it began had the value that it has by default now.
    """
    path = prepared.request.run / RUN_NAME
    if not exists(path):
        return {}
    defaults = flatten({"recipe": json.loads(json.dumps(unstructure(RunConfig())))})
    before = defaults | flatten(read_sealed(path)["identity"])
    now = defaults | flatten(json.loads(json.dumps(prepared.identity)))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return {name: f"{name} was {before.get(name)}, now {now.get(name)}" for name in names}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by dotted name; of a list of dicts, their numbers are a part of it.

    >>> flatten({"a": {"b": 1}, "c": 2, "d": [{"e": 3}]})
    {'a.b': 1, 'c': 2, 'd.0.e': 3}
    """
    if isinstance(tree, list | tuple) and tree and isinstance(tree[0], dict):
        tree = {str(number): value for number, value in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
