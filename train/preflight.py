"""Everything that can be wrong with a run, found before a process group exists: one mistake is one message."""

import platform
import time
from dataclasses import dataclass, replace
from typing import Any

from shared.config import unstructure
from shared.cursor import Cursor
from shared.errors import ConfigError
from shared.format import Index
from shared.mixed_order import MixedOrder, Order, parts_of
from train.architecture import at_least
from train.beginning import Beginning, beginning_of
from train.config import RunConfig
from train.continuing import check_run
from train.datasets import Datasets, open_datasets
from train.golden import check_tokenizer
from train.layout import Layout, lay_out
from train.loggers import check_loggers
from train.mixed_view import open_validation, view_of
from train.orders import reading_order, validation_order
from train.passes import check_passes, passes_at_end
from train.request import RunRequest
from train.room import check_room
from train.run_files import CHECKPOINTS_NAME
from train.views import View
from train.walltime import parse_deadline


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
    check_run(prepared)
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


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    import numpy
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
