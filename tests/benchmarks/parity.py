"""The losses of 300 steps of the trainer in every layout, against a plain loop with the same order and seed.

`python -m tests.benchmarks.parity TOKENS --folder DIR` trains a small model on a dataset, best one of 8,192 entries, by
the plain loop of `plain_training` and by real runs, `python -m train run`, of each variant. What is in DIR already is
not trained again; `--only` takes parts of the names of variants. It fails if a loss of
any step differs by more than 1e-3, or one of the first ten by more than 1e-5. The last loss alone would not tell:
without weight decay it is 4e-4 off, steps before it 4e-3; with a beta2 of 0.951 8e-4 and 1e-2. With an epsilon of 1e-7
the first ten are 1e-4 off.

Rounding grows over the steps, as Adam divides small gradients by their size. How far it alone goes is shown by the
plain loop against itself with each batch in pieces: what is no further apart than that is the same training.
"""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from tests.benchmarks.plain_training import train_plainly
from train.config import load_recipe
from train.records import read_metrics

REPOSITORY = Path(__file__).parents[2]
STEPS, TOLERANCE, PIECES = 300, 1e-3, 4
EARLY, EARLY_TOLERANCE = 10, 1e-5
PLAIN = "plain loop"
RECIPE = f"""
[model]
hidden_size = 128
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
intermediate_size = 256
max_position_embeddings = 64
tie_word_embeddings = false

[data]
sequence_length = 64
global_batch = 8

[optimizer]
learning_rate = 5e-4
min_learning_rate = 5e-5
warmup_steps = 20

[training]
total_steps = {STEPS}
microbatch = 2
"""


@dataclass(frozen=True)
class Variant:
    """A way to train the same, which must not change what is learned."""

    name: str
    num_processes: int
    options: str
    like: str | None = PLAIN
    """What it must agree with: the plain loop or a variant before it. None: nothing, others are compared with it."""


PIPELINES = "--strategy pipeline --pipeline.stages 2"
FULL = "--training.activation-checkpointing full"
MUON = "--optimizer.name muon"
# Every option that must not change what is learned has its line here.
VARIANTS = (
    Variant("microbatch 8", 1, "--training.microbatch 8"),
    Variant("microbatch 2", 1, ""),
    Variant("microbatch 1", 1, "--training.microbatch 1"),
    Variant("compile", 1, "--training.compile"),
    Variant("checkpointing selective", 1, "--training.activation-checkpointing selective"),
    Variant("checkpointing full", 1, FULL),
    Variant("checkpointing full, stride 2", 1, f"{FULL} --training.checkpoint-stride 2"),
    Variant("fsdp x2", 2, ""),
    Variant("fsdp x2, gathered once", 2, "--fsdp.no-reshard-after-forward"),
    Variant("fsdp x2, two copies", 2, "--fsdp.shard-size 1"),
    Variant("fsdp x4, two copies of two shards", 4, "--fsdp.shard-size 2"),
    Variant("fsdp x2, compile, checkpointing full", 2, f"--training.compile {FULL}"),
    Variant("pipeline x2", 2, "--strategy pipeline"),
    Variant("pipeline x4", 4, "--strategy pipeline"),
    Variant("pipeline x2, compile", 2, "--strategy pipeline --training.compile"),
    Variant("pipeline x2, interleaved-1f1b", 2, "--strategy pipeline --pipeline.schedule interleaved-1f1b"),
    Variant("pipeline x2, zero-bubble", 2, "--strategy pipeline --pipeline.schedule zero-bubble"),
    Variant("pipeline 2x2, replicated", 4, PIPELINES),
    Variant("pipeline 2x2, sharded", 4, f"{PIPELINES} --pipeline.data-parallel sharded"),
    Variant(
        "pipeline 2x2, sharded, zero-bubble",
        4,
        f"{PIPELINES} --pipeline.data-parallel sharded --pipeline.schedule zero-bubble",
    ),
    Variant("muon", 1, MUON, like=None),
    Variant("muon, fsdp x2", 2, MUON, like="muon"),
    Variant("muon, pipeline x2", 2, f"{MUON} --strategy pipeline", like="muon"),
)


def main(tokens: tyro.conf.Positional[Path], folder: Path | None = None, only: tuple[str, ...] = ()) -> int:
    """Train by the plain loop and in each variant; print how far the losses are apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = (folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE)
        plain, in_pieces = (_plain_losses(tokens, folder, recipe, pieces) for pieces in (1, PIECES))
        title = f"{PLAIN}: {plain[0]:.4f} at step 1, {plain[-1]:.5f} at step {len(plain)}"
        table = Table(
            "variant", "loss", "apart", "most", "at step", f"in the first {EARLY}", "", "seconds", title=title
        )
        table.add_row(f"{PLAIN} in {PIECES} pieces", *_compare(in_pieces, plain))
        losses, failures = {PLAIN: plain}, list[str]()
        for variant in _chosen(only):
            began = time.perf_counter()
            found = _train(variant, tokens.resolve(), folder, recipe)
            if isinstance(found, str) or variant.like not in {None, *losses}:
                failures.append(found if isinstance(found, str) else f"{variant.like} is not there: {variant.name}")
                continue
            losses[variant.name] = found
            cells = _compare(found, losses[variant.like]) if variant.like else (f"{found[-1]:.5f}", *[""] * 5)
            table.add_row(variant.name, *cells, f"{time.perf_counter() - began:.0f}")
            failures += [f"{variant.name} is not {variant.like}"] if cells[-1] == "FAIL" else []
    Console(width=130).print(table)
    print("\n".join(failures))
    return int(len(failures) > 0)


def _chosen(only: tuple[str, ...]) -> list[Variant]:
    """Variants with one of these in their names, and those they must agree with."""
    names = {variant.name for variant in VARIANTS if not only or any(part in variant.name for part in only)}
    names |= {variant.like for variant in VARIANTS if variant.name in names and variant.like}
    return [variant for variant in VARIANTS if variant.name in names]


def _compare(found: list[float], wanted: list[float]) -> tuple[str, ...]:
    """Cells for a table: the last loss, how far it is from the wanted one, where that is most, the verdict."""
    apart = [abs(mine - theirs) for mine, theirs in zip(found, wanted, strict=True)]
    most, early = max(apart), max(apart[:EARLY])
    is_equal = early <= EARLY_TOLERANCE and all(distance <= TOLERANCE for distance in apart)  # false for nan too
    numbers = (f"{found[-1]:.5f}", f"{apart[-1]:.1e}", f"{most:.1e}", str(1 + apart.index(most)), f"{early:.1e}")
    return *numbers, "pass" if is_equal else "FAIL"


def _plain_losses(tokens: Path, folder: Path, recipe: Path, pieces: int) -> list[float]:
    path = folder / f"plain-{pieces}.json"
    if not path.exists():
        path.write_text(json.dumps(train_plainly(tokens, load_recipe(str(recipe)), pieces)))
    losses: list[float] = json.loads(path.read_text())
    return losses


def _train(variant: Variant, tokens: Path, folder: Path, recipe: Path) -> list[float] | str:
    """The loss of each step of a run, which is made or ended if it is not; or why it could not be."""
    run = folder / variant.name.replace(" ", "-").replace(",", "")
    command = (sys.executable, "-m", "train", "run", tokens, run, "--recipe", recipe)
    command = (*command, "--nproc", variant.num_processes, *shlex.split(variant.options))
    done = subprocess.run([*map(str, command)], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{variant.name} ended with exit code {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}"
    if '"event": "eager"' in (run / "events.jsonl").read_text():
        return f"{variant.name} was not compiled: {run}/events.jsonl says why"
    return [record["loss"] for record in read_metrics(run)]


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
