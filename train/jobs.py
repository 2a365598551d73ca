"""The command `launch`: a run as a chain of jobs on a cluster, or of slices on this machine."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from shared.batch import Job, System, notice_s
from shared.duration import hms
from shared.errors import ConfigError
from shared.site import Site, load_site
from shared.submit import give, name_of, walltime_of
from train.architecture import at_least
from train.config import load_recipe
from train.datasets import open_datasets
from train.layout import lay_out
from train.options import RunOptions
from train.slices import ERROR_NAME, UNIT

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torchrun leaves the last words of its ranks
LEAST_SHUTDOWN_S = 30


@dataclass(frozen=True)
class LaunchOptions:
    """Print or submit the script of a job that trains and asks for the next until the run is finished. What else is
    given goes to `python -m train run`: any option of it but --nproc and --deadline.
    """

    system: Annotated[System, tyro.conf.Positional]
    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Name of a shipped recipe, or path of a .toml file."""
    nodes: int = 1
    gpus: int | None = None
    """Processes on each node. None: as the site file says (local: the GPUs, or 2)."""
    walltime: str | None = None
    """Of each job: hours:minutes or hours:minutes:seconds. None: as the site file says (local: without end)."""
    tokens: Path = Path("../data/CC-MAIN-2025-26-tokens")
    """The dataset."""
    run: Path | None = None
    """Directory of the run. None: ../runs and the recipe's name."""
    site: Path | None = None
    """TOML file with account, queue, modules and so on. None: $ARGONNE_SITE, or ~/.config/argonne/site.toml."""
    submit: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Submit the script instead of printing it."""


def launch(arguments: Sequence[str]) -> None:
    """Print or submit the job script of a run: Slurm, PBS or this machine, slice after slice until it is finished."""
    options, others = tyro.cli(LaunchOptions, args=arguments, prog="python -m train launch", return_unknown_args=True)
    at_least("nodes", options.nodes, 1)
    if options.system == "local" and options.nodes > 1:
        raise ConfigError(f"nodes {options.nodes} is too many: this machine is one")
    is_file = options.recipe.endswith(".toml")
    recipe = str(Path(options.recipe).resolve()) if is_file else options.recipe
    run = (options.run or Path("../runs") / Path(options.recipe).stem).resolve()
    words = [str(options.tokens.resolve()), str(run), "--recipe", recipe, *others]
    site, origin = load_site(options.site)
    gpus, walltime_s = _gpus(options, site), walltime_of(options.system, options.walltime, site)
    asked = _checked(words, recipe)
    chain = run.with_name(f"{run.name}-job")
    is_local = options.system == "local"
    job = Job(
        name=name_of(run),
        directory=chain,
        walltime_s=walltime_s,
        program=[sys.executable, "-m", "train"],
        target=run,
        unit=UNIT,
        command=_here(words, gpus, walltime_s)
        if is_local
        else _by_torchrun(words, options.nodes, gpus, asked, walltime_s),
        origin=shlex.join(["python", "-m", "train", "launch", *arguments]),
        nodes=options.nodes,
        gpus=gpus or 0,
        environment=[] if is_local else [(ERROR_FILE, str(chain / ERROR_NAME))],
    )
    rows = [
        ("run", f"{run}, to step {asked.stop_step or asked.config.total_steps:,}"),
        ("recipe", f"{recipe}, {asked.config.strategy}{_layout(asked, options.nodes, gpus)}"),
        ("tokens", str(asked.tokens)),
    ]
    give(options.system, job, (site, origin), rows, options.submit)


def _gpus(options: LaunchOptions, site: Site) -> int | None:
    """Processes on each node; None if this machine is to say.

    Raises: ConfigError if a batch system would have to guess.
    """
    gpus = options.gpus if options.gpus is not None or options.system == "local" else site.gpus
    if gpus is None and options.system != "local":
        raise ConfigError("gpus is not given: --gpus 8, or gpus in the site file, is wanted")
    if gpus is not None:
        at_least("gpus", gpus, 1)
    return gpus


def _checked(words: Sequence[str], recipe: str) -> RunOptions:
    """What `python -m train run` would understand.

    Raises: ConfigError for what a slice says by itself; whatever a recipe and a dataset raise.
    """
    default = RunOptions(tyro.MISSING, tyro.MISSING, load_recipe(recipe), recipe)
    asked = tyro.cli(RunOptions, args=words, default=default, prog="python -m train launch SYSTEM RECIPE")
    for name, value in (("nproc", asked.nproc), ("deadline", asked.deadline)):
        if value is not None:
            raise ConfigError(f"{name} {value} is given: leave it out, --gpus and --walltime say it")
    at_least("max-restarts", asked.max_restarts, 0)
    at_least("training.total_steps", asked.config.total_steps, 1)
    return asked


def _layout(asked: RunOptions, nodes: int, gpus: int | None) -> str:
    """How many ranks there are, if that is known here.

    Raises: ConfigError if the recipe cannot be laid out on them; FormatError without a dataset.
    """
    tokenizer = open_datasets(asked.tokens, asked.config.data).index.tokenizer
    if gpus is None:
        return ""
    model = asked.config.model.resolved(tokenizer.vocab_size, tokenizer.end_of_document_id)
    lay_out(replace(asked.config, model=model), nodes * gpus)
    return f" on {nodes * gpus} ranks"


def _here(words: Sequence[str], gpus: int | None, walltime_s: float) -> str:
    nproc = [] if gpus is None else ["--nproc", str(gpus)]
    deadline = [] if walltime_s == float("inf") else ["--deadline", hms(walltime_s)]
    return shlex.join([sys.executable, "-m", "train", "run", *words, *nproc, *deadline])


def _by_torchrun(words: Sequence[str], nodes: int, gpus: int | None, asked: RunOptions, walltime_s: float) -> str:
    agent = [
        f"--nnodes={nodes}",
        f"--nproc-per-node={gpus}",
        "--rdzv-backend=c10d",
        f"--max-restarts={asked.max_restarts}",
        f"--shutdown-timeout={max(notice_s(walltime_s), LEAST_SHUTDOWN_S)}",
        "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1",
    ]
    meeting = '--rdzv-id="$id" --rdzv-endpoint="$head:$port"'
    torchrun, train = [sys.executable, "-m", "torch.distributed.run"], ["-m", "train", "run", *words]
    return f"{shlex.join([*torchrun, *agent])} {meeting} {shlex.join(train)}"
