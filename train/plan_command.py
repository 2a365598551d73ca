"""The command `plan`: a recipe completed by a dataset, planned, and driven on ranks that do not exist."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from shared.duration import walltime
from shared.errors import ConfigError
from shared.format import Index
from shared.terminal import safe_text
from train.config import RunConfig, load_recipe
from train.datasets import open_datasets

GIB = 1 << 30


@dataclass(frozen=True)
class PlanOptions:
    """Tell whether a recipe fits on GPUs that are not here, how long it takes on them, and what it leaves on a disk."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = "tiny"
    """Name of a shipped recipe, or path of a .toml file; the options below change it."""
    gpus: int = 8
    gpu_memory: float = 80.0
    """GiB of each."""
    gpu: str = "h100"
    """Whose peak the MFU is a share of."""
    mfu: float = 0.4
    """Share of that peak that a whole step gets to, waiting included."""
    measured: Path | None = None
    """A run whose speed is taken, instead of an MFU."""
    walltime: str | None = None
    """Of the jobs that the run is cut into: hours:minutes, or hours:minutes:seconds. None: one job without an end."""
    tokens: Path | None = None
    """The dataset, for the size of its vocabulary and how often it is read."""
    vocabulary: int = 151665
    """Ids of a tokenizer, if neither the recipe nor a dataset says."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """For programs."""


def plan(arguments: Sequence[str]) -> None:
    """Tell whether a recipe fits on GPUs that are not here, how long it takes on them, and what it leaves on a disk."""
    from train.plan import Hardware, drive_dearest, make_plan
    from train.plan_text import as_data, as_text

    recipe = next((word for word in arguments[:1] if not word.startswith("-")), PlanOptions.recipe)
    default = PlanOptions(load_recipe(recipe), recipe)
    options = tyro.cli(PlanOptions, args=arguments, default=default, prog="python -m train plan")
    if not (math.isfinite(options.gpu_memory) and options.gpu_memory > 0):
        raise ConfigError(f"gpu_memory {options.gpu_memory} is no size: GiB of a GPU, more than 0, are wanted")
    index = None if options.tokens is None else open_datasets(options.tokens, options.config.data).index
    hardware = Hardware(
        gpus=options.gpus,
        memory_bytes=int(options.gpu_memory * GIB),
        gpu=options.gpu,
        mfu=options.mfu,
        measured=options.measured,
        walltime_s=None if options.walltime is None else walltime(options.walltime),
    )
    planned = make_plan(_completed(options.config, index, options.vocabulary), hardware)
    planned = replace(planned, driven=drive_dearest(planned))
    if options.as_json:
        print(json.dumps(as_data(planned), indent=1))
    else:
        print(safe_text(as_text(planned, None if index is None else index.num_tokens), keep_newlines=True))


def _completed(config: RunConfig, index: Index | None, vocabulary: int) -> RunConfig:
    """With the vocabulary of a dataset, or else the recipe's or that one."""
    if index is not None:
        model = config.model.resolved(index.tokenizer.vocab_size, index.tokenizer.end_of_document_id)
    else:
        model = config.model.resolved(config.model.vocab_size or vocabulary, 0)
    return replace(config, model=model)
