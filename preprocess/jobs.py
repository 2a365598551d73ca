"""The command `launch`: a build as a chain of job arrays on a cluster."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from preprocess.options import TokenizeOptions
from preprocess.slices import UNIT
from shared.batch import Job
from shared.errors import ConfigError
from shared.site import load_site
from shared.submit import give, name_of, walltime_of
from shared.urls import not_here, remote_url


@dataclass(frozen=True)
class LaunchOptions:
    """Print or submit the script of a job array that tokenizes, one after the other until the dataset is finished.

    What else is given goes to `python -m preprocess tokenize`: any option of it but --part and --ray.
    """

    system: Annotated[Literal["slurm", "pbs"], tyro.conf.Positional]
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A directory of *.parquet, *.jsonl and *.jsonl.zst files, a glob pattern or one file."""
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    tasks: int = 8
    """Of an array, each on a node of its own with a part of the build."""
    walltime: str | None = None
    """Of each array: hours:minutes or hours:minutes:seconds. None: as the site file says."""
    site: Path | None = None
    """TOML file with account, queue, modules and so on. None: $ARGONNE_SITE, or ~/.config/argonne/site.toml."""
    submit: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Submit the script instead of printing it."""


def launch(argv: Sequence[str]) -> None:
    """Print or submit the job script of a build: arrays of tasks until the dataset is finished."""
    options, others = tyro.cli(LaunchOptions, args=argv, prog="python -m preprocess launch", return_unknown_args=True)
    if options.tasks < 1:
        raise ConfigError(f"tasks {options.tasks} is too small: at least 1 is wanted")
    for place in (options.data, options.tokens):
        if (url := remote_url(place)) is not None:
            raise ConfigError(not_here(url))
    data, tokens = os.path.abspath(options.data), options.tokens.resolve()  # noqa: PTH100 (a pattern is no path)
    words = [data, str(tokens), *others]
    asked = tyro.cli(TokenizeOptions, args=words, prog="python -m preprocess launch SYSTEM DATA TOKENS")
    asked.build_settings(), asked.tokenizer_settings()
    for name, value in (("part", asked.part), ("ray", asked.ray)):
        if value is not None:
            raise ConfigError(f"{name} {value} is given: leave it out, a task of the array knows its part")
    site, origin = load_site(options.site)
    command = shlex.join([sys.executable, "-m", "preprocess", "tokenize", *words])
    job = Job(
        name=name_of(tokens),
        directory=tokens.with_name(f"{tokens.name}-job"),
        walltime_s=walltime_of(options.system, options.walltime, site),
        program=[sys.executable, "-m", "preprocess"],
        target=tokens,
        unit=UNIT,
        command=f'{command} --part "$task/{options.tasks}"',
        origin=shlex.join(["python", "-m", "preprocess", "launch", *argv]),
        tasks=options.tasks,
    )
    give(options.system, job, (site, origin), [("data", data), ("tokens", str(tokens))], options.submit)
