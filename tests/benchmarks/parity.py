"""The losses of 300 steps of the trainer in every layout, against a plain loop with the same order and seed.

`python -m tests.benchmarks.parity TOKENS --folder DIR` trains a small model on a dataset, best one of 8,192 entries, by
the plain loop of `plain_training` and by real runs, `python -m train run`, of each variant. What is in DIR already is
not trained again; `--only` takes parts of the names of variants. It fails if a last loss differs by more than 1e-3.

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
from train.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
STEPS, TOLERANCE, PIECES = 300, 1e-3, 4
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


# Every option that must not change what is learned has its line here.
VARIANTS = (
    Variant("fsdp x1, microbatch 8", 1, "--strategy fsdp --training.microbatch 8"),
    Variant("fsdp x1, microbatch 2", 1, "--strategy fsdp"),
    Variant("fsdp x1, microbatch 1", 1, "--strategy fsdp --training.microbatch 1"),
    Variant("fsdp x2, microbatch 2", 2, "--strategy fsdp"),
    Variant("pipeline x2", 2, "--strategy pipeline"),
    Variant("pipeline x4", 4, "--strategy pipeline"),
    Variant("pipeline x2, two of them", 4, "--strategy pipeline --pipeline.stages 2"),
    Variant("recomputed blocks", 1, "--strategy fsdp --model.use-gradient-checkpointing"),
)


def main(tokens: tyro.conf.Positional[Path], folder: Path | None = None, only: tuple[str, ...] = ()) -> int:
    """Train by the plain loop and in each variant; print how far the losses are apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = (folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE)
        wanted, in_pieces = (_plain_losses(tokens, folder, recipe, pieces) for pieces in (1, PIECES))
        title = f"plain loop: {wanted[0]:.4f} at step 1, {wanted[-1]:.5f} at step {len(wanted)}"
        table, failures = Table("variant", "loss", "apart", "most", "at step", "", "seconds", title=title), list[str]()
        table.add_row(f"plain loop in {PIECES} pieces", *_compare(in_pieces, wanted, failures), "")
        for variant in VARIANTS:
            if not only or any(part in variant.name for part in only):
                began = time.perf_counter()
                cells = _compare(_train(variant, tokens.resolve(), folder, recipe), wanted, failures)
                table.add_row(variant.name, *cells, f"{time.perf_counter() - began:.0f}")
    Console(width=110).print(table)
    print("\n".join(failures))
    return int(len(failures) > 0)


def _compare(found: list[float] | str, wanted: list[float], failures: list[str]) -> tuple[str, ...]:
    """Cells for a table; what is wrong is added to `failures`."""
    if isinstance(found, str):
        failures.append(found)
        return "", "", "", "", "FAIL"
    apart = [abs(mine - theirs) for mine, theirs in zip(found, wanted, strict=True)]
    most = max(apart)
    is_equal = apart[-1] <= TOLERANCE  # false for nan too
    if not is_equal:
        failures.append(f"{found[-1]} is not {wanted[-1]}")
    cells = (f"{found[-1]:.5f}", f"{apart[-1]:.1e}", f"{most:.1e}", str(1 + apart.index(most)))
    return *cells, "pass" if is_equal else "FAIL"


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
    return [record["loss"] for record in read_metrics(run)]


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
