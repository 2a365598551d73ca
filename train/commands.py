"""The commands of stage two, and what each can be told."""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from pathlib import Path
from typing import Annotated

import tyro

from shared.command import Command, run_command
from shared.errors import ConfigError, UserError
from shared.terminal import safe_text
from train.architecture import at_least
from train.config import RunConfig, load_recipe
from train.console import Output, console
from train.loggers import Logger
from train.outlook import Outlook
from train.plan_command import plan
from train.preflight import prepare
from train.request import RunRequest
from train.sample import Sampling
from train.signals import Signals
from train.walltime import fixed, is_duration


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


def run(arguments: Sequence[str], signals: Signals | None = None) -> int:
    """Train a model on a token dataset, or continue a run that is there."""
    default = RunOptions(tyro.MISSING, tyro.MISSING, _recipe(arguments, RunOptions.recipe))
    options = tyro.cli(RunOptions, args=arguments, default=default, prog="python -m train run")
    at_least("max-restarts", options.max_restarts, 0)
    request = RunRequest(
        options.tokens,
        options.run,
        options.config,
        options.stop_step,
        options.profile,
        options.memory_snapshot,
        options.deadline,
        options.steal,
        _output(options),
        options.loggers,
    )
    if "RANK" in os.environ:
        return _run_rank(request, signals)
    from train.launch import Launch, default_processes

    num_processes = default_processes() if options.nproc is None else options.nproc
    last_step = prepare(request, num_processes).last_step
    if options.deadline is not None:
        arguments = [*arguments, "--deadline", fixed(options.deadline, time.time())]
    shown = console(request.output, Outlook(last_step))
    launch = Launch(options.run, last_step, num_processes, arguments, options.max_restarts, shown)
    return launch(signals or Signals())


def _output(options: RunOptions) -> Output:
    if options.quiet and options.as_json:
        raise ConfigError("--quiet and --json are both given: one is wanted")
    return "quiet" if options.quiet else "json" if options.as_json else "lines"


def _run_rank(request: RunRequest, signals: Signals | None) -> int:
    from train.launch import leave_message
    from train.run import run as run_rank

    try:
        if request.deadline is not None and is_duration(request.deadline):
            raise ConfigError(
                f"deadline {request.deadline} would begin anew when torchrun restarts: give it a time, as that of "
                "`date -Iseconds -d '8 hours'`"
            )
        run_rank(request, signals)
    except UserError as error:
        leave_message(error)
        return 2
    return 0


def _recipe(arguments: Sequence[str], default: str) -> RunConfig:
    """The recipe that `arguments` name."""
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--recipe", default=default)
    return load_recipe(named.parse_known_args(arguments)[0].recipe)


def doctor(arguments: Sequence[str]) -> int:
    """Examine this machine, a dataset and where a run is to be kept, and take one real step on real ranks."""
    from train.doctor import Patient
    from train.doctor import doctor as examine
    from train.launch import default_processes

    default = DoctorOptions(_recipe(arguments, DoctorOptions.recipe))
    options = tyro.cli(DoctorOptions, args=arguments, default=default, prog="python -m train doctor")
    num_processes = default_processes() if options.nproc is None else options.nproc
    at_least("nproc", num_processes, 1)
    return examine(Patient(options.config, num_processes, options.tokens, options.run), options.as_json)


def layouts(arguments: Sequence[str]) -> None:
    """Drive one step of a recipe on ranks that do not exist, and tell what each would send and hold."""
    from train.layouts import HEADER, check_layouts

    default = LayoutsOptions(_recipe(arguments, LayoutsOptions.recipe))
    options = tyro.cli(LayoutsOptions, args=arguments, default=default, prog="python -m train layouts")
    config = replace(options.config, model=options.config.model.resolved(options.vocabulary, 0))
    print(HEADER)
    for checked in check_layouts(config, options.ranks, options.stages, options.shard_size, options.microbatches):
        print(checked, flush=True)


def sample(arguments: Sequence[str]) -> None:
    """Continue a text with the model of a run's newest checkpoint."""
    from train.sample import sample as sample_text

    default = SampleOptions(tyro.MISSING, Sampling())
    options = tyro.cli(SampleOptions, args=arguments, default=default, prog="python -m train sample")
    text, step = sample_text(options.run, options.prompt, options.sampling)
    print(f"--- step {step} of {options.run}")
    print(safe_text(text, keep_newlines=True))


def report(arguments: Sequence[str]) -> None:
    """Tell what a run has done, alive, finished or dead, in a few lines and on a page for a browser."""
    from train.report import report as report_run

    options = tyro.cli(ReportOptions, args=arguments, prog="python -m train report")
    runs = [options.run] if options.other is None else [options.run, options.other]
    print(report_run(runs, options.out, options.recipe, as_json=options.as_json, png=options.png))


def status(arguments: Sequence[str]) -> None:
    """Tell where the ranks of a run are, alive, hung or dead."""
    from train.status import status as status_of_run

    print(status_of_run(tyro.cli(StatusOptions, args=arguments, prog="python -m train status").run))


def trace(arguments: Sequence[str]) -> None:
    """Tell which documents a run saw at a step, or at which steps it saw a document."""
    from train.tracing import TraceOptions
    from train.tracing import trace as trace_run

    trace_run(tyro.cli(TraceOptions, args=arguments, prog="python -m train trace"))


COMMANDS: dict[str, Command] = {
    "run": run,
    "sample": sample,
    "report": report,
    "status": status,
    "trace": trace,
    "layouts": layouts,
    "plan": plan,
    "doctor": doctor,
}


def main(argv: Sequence[str], signals: Signals | None) -> int:
    """Exit code of the command named first in `argv`; `signals` are those that came since the process began."""
    heard: dict[str, Command] = {"run": update_wrapper(partial(run, signals=signals), run)}
    return run_command("train", COMMANDS | heard, argv)
