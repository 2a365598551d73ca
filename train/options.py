"""What each command of `train` can be told: the command line, as dataclasses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shared.errors import ConfigError
from shared.terminal import safe_text
from shared.urls import remote_url
from train.config import RunConfig
from train.loggers import Logger
from train.sample import Sampling


@dataclass(frozen=True)
class RunOptions:
    """Train a model on a token dataset, or continue a run that is there."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The dataset, made by `make tokenize`."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    recipe: str = "tiny"
    """Name of a shipped recipe, or path of a .toml file; the options below change it."""
    nproc: int | None = None
    """Processes. None: as many as there are GPUs, or 2."""
    stop_step: int | None = None
    """End after this step, saved; the schedule stays that of training.total-steps."""
    deadline: str | None = None
    """When the job ends: a time (2026-11-30T18:00:00), or hours:minutes:seconds from now (8:00:00). The run stops saved
    before it. None: when Slurm or PBS ends the job."""
    max_restarts: int = 3
    """Times that the processes are started again after one died, without a new checkpoint meanwhile."""
    steal: bool = False
    """Take the run's directory over from whoever has it, which then changes nothing there any more."""
    begin_from: Path | None = None
    """Run whose newest checkpoint this one begins from, by a recipe of its own: another length, mixture or schedule.
    Its steps count from 0, and what that has read of a dataset is not read again before the rest of it was."""
    reset_optimizer: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --begin-from: take the weights alone from there, not the optimizer's state."""
    loggers: tuple[Logger, ...] = ()
    """Show the steps there too: RUN/tensorboard; W&B, offline unless WANDB_MODE says otherwise; Trackio."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print what fails and how the run ends, and no more."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """For programs: print each line of metrics.jsonl and events.jsonl on stdout when it is written."""
    profile: int | None = None
    """Write a trace of so many steps to RUN/profile-rank0.json, for chrome://tracing or ui.perfetto.dev."""
    memory_snapshot: bool = False
    """Write every allocation of a GPU to RUN/memory-rank0.pickle, for pytorch.org/memory_viz."""

    def __post_init__(self) -> None:
        if (url := remote_url(self.run)) is not None:
            raise ConfigError(f"{safe_text(url)} is elsewhere: a run is kept on this machine, give a directory")


@dataclass(frozen=True)
class DoctorOptions:
    """Examine this machine, a dataset and where a run is to be kept, and take one real step on real ranks."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    recipe: str = "tiny"
    """Name of a shipped recipe, or path of a .toml file; the options below change it."""
    tokens: Path | None = None
    """The dataset, if there is one yet."""
    run: Path | None = None
    """Directory of the run, which may not be there yet."""
    nproc: int | None = None
    """Processes. None: as many as there are GPUs, or 2."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """For programs."""


@dataclass(frozen=True)
class SampleOptions:
    """Continue a text with the model of a run's newest checkpoint."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")]
    prompt: str = ""


@dataclass(frozen=True)
class ExportOptions:
    """Write a run's newest checkpoint as a Hugging Face folder, which transformers loads to the same logits."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder, which is not there yet."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights."""


@dataclass(frozen=True)
class Unsettled(RunConfig):
    """A recipe that is to go on with another model than its own, which it need not fit."""

    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class ImportOptions:
    """Make a run that continues a model from elsewhere: an old Argonne checkpoint, or a Llama's Hugging Face folder."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The folder, or the checkpoint file (.pth, .pt)."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Directory of the run, which is not there yet."""
    config: Annotated[Unsettled, tyro.conf.arg(name="")]
    recipe: str = "tiny"
    """Name of a shipped recipe, or path of a .toml file, by which to go on. Its [model] does not count: that is as the
    source tells it, and what weights leave open as --model options do (--model.eos-token-id)."""
    tokens: Path | None = None
    """The dataset, to go on in it at the row where an old run was in its files. None: in front, in any dataset."""
    tokenizer: Path | None = None
    """The tokenizer.json of an old checkpoint, which does not tell it. None: that of the dataset it goes on with."""
    heads: int | None = None
    """Of attention, which an old checkpoint does not tell: 12 in Argonne 1.0, 16 in 1.5, 24 in 2.0."""


@dataclass(frozen=True)
class ReportOptions:
    """Tell what a run has done, alive, finished or dead, in a few lines and on a page for a browser."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_B")] = None
    """Directory of another run, to be drawn in the same plots."""
    out: Path | None = None
    """The page. None: report.html in the run's directory, or compared.html if there are two."""
    recipe: str | None = None
    """Recipe to compare with. None: the shipped one that differs least."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """For programs: all figures, and no page unless --out names one."""
    png: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw the losses to loss.png in the run's directory too, with matplotlib."""


@dataclass(frozen=True)
class StatusOptions:
    """Tell where the ranks of a run are, alive, hung or dead."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""


@dataclass(frozen=True)
class LayoutsOptions:
    """Drive one step of a recipe on ranks that do not exist, and tell what each would send and hold."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    recipe: str = "argonne-2.0"
    """Name of a shipped recipe, or path of a .toml file; the options below change it."""
    ranks: tuple[int, ...] = (8, 64, 512)
    stages: int = 4
    """Of the pipelines."""
    shard_size: int = 8
    """Ranks that share a copy of the weights under hybrid sharding."""
    microbatches: int = 4
    """That are driven; what a step of more would send follows by formula."""
    vocabulary: int = 151665
    """Ids of a tokenizer, if the recipe does not say model.vocab_size."""
