"""Tokens a second of our trainer and of others: one process, two threads, the same model of 23M parameters in fp32.

`python -m tests.benchmarks.peers_training --folder DIR` installs each peer from PyPI into an environment of its own in
DIR (without it, in a temporary one), all with this environment's torch. Each trainer is a warm process on the same two
cores, and they take one step in turn: the whole of a step of its loop, from where it begins to where the next begins.
Peers that cannot train here are started too, and what they say is printed. `--ours '--training.microbatch 2'` adds
options to our run; `--only` takes names of trainers. Compiled code is kept in DIR, so a second run starts sooner.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from tests.benchmarks.environments import make_environment
from tests.benchmarks.measure import take_turns
from tests.benchmarks.peer_gate import (
    BATCH,
    DIM,
    FEED_FORWARD,
    HEADS,
    LAYERS,
    LEARNING_RATE,
    LENGTH,
    MAX_GRAD_NORM,
    NUM_PARAMETERS,
    VOCAB,
)
from tests.train_helpers import write_tokens

REPOSITORY = Path(__file__).parents[2]
THREADS = 2
PROBE_S = 120
LITGPT = (
    *("litgpt==0.5.13", "lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0"),
    *("jsonargparse==4.41.0", "psutil==7.2.2"),
)
TRANSFORMERS = ("accelerate==1.15.0", "psutil==7.2.2")  # transformers itself is in this environment
TORCHTITAN = (
    *("torchtitan==0.3.0", "torchdata==0.11.0", "torch_checkpointing==0.1.1", "spmd_types==0.2.3", "triton==3.9.0"),
    *("datasets==4.7.0", "dill==0.4.1", "multiprocess==0.70.19", "pandas==3.1.1", "pytz==2026.6", "einops==0.8.2"),
    *("tensorboard==2.21.0", "tensorboard-data-server==0.7.2", "absl-py==2.5.1", "Markdown==3.11.3"),
    *("Werkzeug==3.1.9", "httpx==0.28.1", "httpcore==1.0.9", "sniffio==1.3.1", "aiohttp==3.14.5", "aiosignal==1.4.0"),
    *("aiohappyeyeballs==2.7.1", "frozenlist==1.8.0", "multidict==7.2.1", "propcache==0.5.4", "yarl==1.25.1"),
)
NANOTRON = ("nanotron==0.4", "dacite==1.9.2")
RECIPE = f"""
[model]
vocab_size = {VOCAB}
hidden_size = {DIM}
num_hidden_layers = {LAYERS}
num_attention_heads = {HEADS}
num_key_value_heads = {HEADS}
intermediate_size = {FEED_FORWARD}
max_position_embeddings = {LENGTH}
tie_word_embeddings = false

[data]
sequence_length = {LENGTH}
global_batch = {BATCH}

[optimizer]
learning_rate = {LEARNING_RATE}
warmup_steps = 1
max_grad_norm = {MAX_GRAD_NORM}

[training]
total_steps = 1000000
microbatch = {BATCH}
"""


@dataclass(frozen=True)
class Side:
    """One of those that are compared: its module here, and what that needs beside what is in this environment."""

    name: str
    module: str
    requirements: tuple[str, ...] = ()
    arguments: tuple[object, ...] = ()

    def command(self, folder: Path) -> list[str]:
        """What starts it; its environment is made if it is not there."""
        python = Path(sys.executable)
        if self.requirements:
            python = make_environment(folder / self.requirements[0], self.requirements, with_ours=True) / "python"
        return [*map(str, (python, "-m", f"tests.benchmarks.{self.module}", *self.arguments))]


OURS, PLAIN = "ours", "plain eager loop"
OTHERS = (
    Side(PLAIN, "plain_llama"),
    Side("transformers Trainer", "peer_transformers", TRANSFORMERS),
    Side("litgpt", "peer_litgpt", LITGPT),
    Side("torchtitan's parts", "peer_torchtitan", TORCHTITAN),
    Side("nanochat's habits (Muon)", "peer_nanochat"),
)
PROBES = (  # trainers that want a GPU: what each says without one is printed
    Side("torchtitan's trainer", "peer_torchtitan", TORCHTITAN, ("trainer",)),
    Side("nanotron", "peer_nanotron", NANOTRON),
)


def main(folder: Path | None = None, rounds: int = 5, ours: str = "", only: tuple[str, ...] = ()) -> None:
    """Print tokens a second, the ratios to ours and to the plain loop, and the peak of memory of each."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory, folder = Path(name), (folder or Path(name)).resolve()
        sides = [_ours(directory, ours), *OTHERS]
        chosen = [side for side in sides if not only or side.name in only]
        reasons = [_reason(probe, folder) for probe in PROBES if not only]
        trainers = {side.name: stack.enter_context(Trainer(side, directory, folder)) for side in chosen}
        seconds = take_turns({name: trainer.step for name, trainer in trainers.items()}, rounds, warm_up=2)
        peaks = {name: trainer.peak_megabytes() for name, trainer in trainers.items()}
    _show(seconds, peaks)
    print("\n".join([*reasons, f"{rounds} rounds, medians; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"]))


def _show(seconds: dict[str, float], peaks: dict[str, float]) -> None:
    title = f"{NUM_PARAMETERS / 1e6:.1f}M parameters, {BATCH} sequences of {LENGTH}, fp32, {THREADS} threads"
    table = Table("trainer", "tokens/s", "to ours", "to plain", "s/step", "peak MB", title=title)
    for name, taken in seconds.items():
        ratios = (f"{seconds[side] / taken:.2f}" if side in seconds else "" for side in (OURS, PLAIN))
        table.add_row(name, f"{BATCH * LENGTH / taken:,.0f}", *ratios, f"{taken:.2f}", f"{peaks[name]:,.0f}")
    Console(width=110).print(table)


def _ours(directory: Path, options: str) -> Side:
    """Our trainer on a dataset of random ids, long enough for every step."""
    recipe, tokens = directory / "recipe.toml", directory / "tokens"
    recipe.write_text(RECIPE)
    ids = np.random.default_rng(0).integers(0, VOCAB, 200 * BATCH * LENGTH)
    write_tokens(tokens, [ids.tolist()], vocab_size=VOCAB, length=LENGTH)
    run = (tokens, directory / "run", "--recipe", recipe, "--nproc", 1, *shlex.split(options))
    return Side(OURS, "peer_ours", arguments=run)


def _reason(probe: Side, folder: Path) -> str:
    """Why a trainer is not compared: the last thing that it says."""
    settings = {"cwd": REPOSITORY, "env": _environment(folder), "timeout": PROBE_S}
    done = subprocess.run(probe.command(folder), capture_output=True, text=True, check=False, **settings)
    last = (done.stderr.strip() or "nothing").splitlines()[-1]
    return f"{probe.name}: " + ("trains here: compare it" if done.returncode == 0 else f"does not train here: {last}")


def _environment(folder: Path) -> dict[str, str]:
    kept = {"OMP_NUM_THREADS": str(THREADS), "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    return {**os.environ, **kept, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


class Trainer:
    """A warm process that does a step when it is told to."""

    def __init__(self, side: Side, directory: Path, folder: Path) -> None:
        self._name, self._log = side.name, directory / f"{side.name}.log"
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                side.command(folder),
                cwd=REPOSITORY,
                env=_environment(folder),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        print(f"starting {side.name}", flush=True)
        self._wait()

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def step(self) -> None:
        """One optimizer step."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self._wait()

    def peak_megabytes(self) -> float:
        """The most memory that the process itself has held; helpers that compile are not counted."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    def _wait(self) -> None:
        if self._process.stdout.readline() != "ready\n":
            sys.exit(f"{self._name} ended:\n{self._log.read_text()[-2000:]}")


if __name__ == "__main__":
    tyro.cli(main)
