"""The commands of stage two."""

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, update_wrapper

import tyro

from shared.command import Command, run_command
from shared.duration import is_duration
from shared.errors import ConfigError, UserError
from shared.terminal import safe_text
from shared.urls import remote_url
from train.architecture import at_least
from train.config import RunConfig, load_recipe
from train.console import Output, console
from train.jobs import launch
from train.options import (
    DoctorOptions,
    ExportOptions,
    ImportOptions,
    LayoutsOptions,
    ReportOptions,
    RunOptions,
    SampleOptions,
    StatusOptions,
    Unsettled,
)
from train.outlook import Outlook
from train.plan_command import plan
from train.preflight import prepare
from train.request import RunRequest
from train.sample import Sampling
from train.signals import Signals
from train.walltime import fixed


def run(arguments: Sequence[str], signals: Signals | None = None) -> int:
    """Train a model on a token dataset, or continue a run that is there."""
    default = RunOptions(tyro.MISSING, tyro.MISSING, _recipe(arguments, RunOptions.recipe))
    options = tyro.cli(RunOptions, args=arguments, default=default, prog="python -m train run")
    at_least("max-restarts", options.max_restarts, 0)
    if "RANK" not in os.environ and (url := remote_url(options.tokens)) is not None:
        from shared.remote import copied

        options = replace(options, tokens=copied(url))
        arguments = [str(options.tokens) if remote_url(word) == url else word for word in arguments]
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
        options.begin_from,
        options.reset_optimizer,
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


def export(arguments: Sequence[str]) -> None:
    """Write a run's newest checkpoint as a Hugging Face folder, which transformers loads to the same logits."""
    from train.export import export as export_run

    options = tyro.cli(ExportOptions, args=arguments, prog="python -m train export")
    done = export_run(options.run, options.out, options.dtype)
    print(
        f"{options.out}: step {done.step:,}, {done.num_parameters:,} parameters in {options.dtype}; transformers gives"
    )
    end = "stops at the end of a document" if done.has_end else "goes on to the length asked for: no end was told"
    print(f"the same logits, greedy text and tokens, and {end}")


def import_model(arguments: Sequence[str]) -> None:
    """Make a run that continues a model from elsewhere: an old Argonne checkpoint, or a Llama's Hugging Face folder."""
    from train.imported import with_model, with_tokenizer, write_import
    from train.legacy_checkpoint import read_legacy
    from train.legacy_place import NO_PLACE, place_of
    from train.llama_folder import read_llama

    recipe = Unsettled(**vars(_recipe(arguments, ImportOptions.recipe)))
    command = partial(tyro.cli, ImportOptions, args=arguments, prog="python -m train import")
    options = command(default=ImportOptions(tyro.MISSING, tyro.MISSING, recipe))
    is_file = options.source.is_file()
    if not is_file and options.heads is not None:
        raise ConfigError("--heads is of an old checkpoint file: a Hugging Face folder tells its own, leave it out")
    found = read_legacy(options.source, options.heads) if is_file else read_llama(options.source)
    model = replace(recipe, model=found.config)  # which is what the options change
    config = RunConfig(**vars(command(default=ImportOptions(tyro.MISSING, tyro.MISSING, model)).config))
    found = with_model(found, config.model)
    if options.tokenizer is not None:
        found = with_tokenizer(found, options.tokenizer)
    place = None if options.tokens is None else place_of(found.data_position, options.tokens, config.data)
    if found.data_position is not None:
        found = replace(found, notes=[*found.notes, place.note if place else NO_PLACE])
    path = write_import(found, options.out, config, place)
    for key, name in found.fate.items():
        print(f"{safe_text(key)}: {safe_text(name)}")
    for note in found.notes:
        print(safe_text(note))
    print(
        f"{options.out}: step {found.step:,}, {len(found.weights)} tensors, {found.num_renamed} renamed, "
        f"{found.num_dropped} dropped; continue it with `python -m train run TOKENS {options.out} --recipe {path}`"
    )


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


def slice_of_run(arguments: Sequence[str]) -> int:
    """For job scripts: tell that a slice of a run begins or how it ended, and hear whether the chain goes on."""
    from train.slices import slice_of_run as tell_slice

    return tell_slice(arguments)


def trace(arguments: Sequence[str]) -> None:
    """Tell which documents a run saw at a step, or at which steps it saw a document."""
    from train.tracing import TraceOptions
    from train.tracing import trace as trace_run

    trace_run(tyro.cli(TraceOptions, args=arguments, prog="python -m train trace"))


COMMANDS: dict[str, Command] = {
    "run": run,
    "sample": sample,
    "export": export,
    "import": import_model,
    "report": report,
    "status": status,
    "trace": trace,
    "layouts": layouts,
    "plan": plan,
    "doctor": doctor,
    "launch": launch,
    "slice": slice_of_run,
}


def main(argv: Sequence[str], signals: Signals | None) -> int:
    """Exit code of the command named first in `argv`; `signals` are those that came since the process began."""
    heard: dict[str, Command] = {"run": update_wrapper(partial(run, signals=signals), run)}
    return run_command("train", COMMANDS | heard, argv)
