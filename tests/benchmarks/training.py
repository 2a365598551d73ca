"""Optimizer steps of one rank, against a plain loop over ordinary model code.

`python -m tests.benchmarks.training` prints this alone.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from shared.allocator import keep_freed_memory
from tests.benchmarks.measure import Comparison, compare
from tests.train_helpers import group_of_one, random_tokens, write_tokens
from train.architecture import ArgonneConfig
from train.checkpoint import Progress
from train.config import DataConfig, RunConfig, TrainingConfig, load_recipe
from train.data import Batch
from train.layout import flops_per_token, lay_out
from train.linear import Linear
from train.loss import LossTerms, fused_loss
from train.metrics import measured_peak_flops
from train.model import ArgonneModel
from train.optim import build_optimizer
from train.run import LARGEST_KEPT_BYTES
from train.strategy import build_strategy

MODEL = ArgonneConfig(
    vocab_size=16384,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    intermediate_size=1024,
    tie_word_embeddings=False,
)
LENGTH, BATCH, THREADS = 512, 4, 2
CPU = torch.device("cpu")
WIDE_VOCABULARY, LONG = 151_669, 4096
RECIPES = ("tiny", "125m", "1b", "argonne-2.0")
TOKENS_PER_S = 1_000_000  # of a step whose computing is a sleep: more than a GPU does of any recipe but `tiny`
LOOPED_S, LEAST_STEPS = 3.0, 6


def some_ids() -> Tensor:
    """(BATCH, LENGTH + 1)."""
    return torch.randint(0, MODEL.vocab, (BATCH, LENGTH + 1))


def our_step(ids: Tensor) -> Callable[[], None]:
    """An optimizer step of the strategy, compiled."""
    config = RunConfig(MODEL, DataConfig(LENGTH, BATCH), training=TrainingConfig(microbatch=BATCH, compile=True))
    batch = Batch(ids[:, :-1], ids[:, 1:], BATCH * LENGTH, np.zeros((BATCH, 16), np.uint8))
    strategy = build_strategy(config, lay_out(config, 1), CPU)
    optimizer = build_optimizer(config.optimizer, strategy.model)

    def step() -> None:
        strategy.forward_backward(batch)
        strategy.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_step(ids: Tensor) -> Callable[[], None]:
    """An optimizer step of ordinary code: torch's own products, all logits, nothing compiled."""
    model = ArgonneModel(MODEL)
    model.initialize(0)
    for module in model.modules():
        if isinstance(module, Linear):
            module.may_use_onednn = False
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure() -> tuple[Comparison, float]:
    """Tokens a second of a model of 23M parameters in fp32, and our share of the measured matrix product peak."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.set_num_threads(THREADS)
    keep_freed_memory(LARGEST_KEPT_BYTES)  # as a run does; the plain loop gains as much from it
    ids = some_ids()
    result = compare("train", "tokens/s", BATCH * LENGTH, our_step(ids), plain_step(ids), rounds=8, warm_up=2)
    peak = measured_peak_flops(CPU, torch.float32)
    dist.destroy_process_group()
    return result, result.ours * flops_per_token(MODEL, LENGTH) / peak


def peak_bytes(kind: str) -> int:
    """The most memory that a process has held that took the loss of LONG positions and its gradient."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.training", kind], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


def _lose(kind: str) -> int:
    """One loss and its gradient, `plain` or `fused`, or neither; the peak of this process in bytes."""
    hidden = torch.randn(1, LONG, 64, requires_grad=True)
    weight = torch.randn(WIDE_VOCABULARY, 64, requires_grad=True)
    targets = torch.randint(0, WIDE_VOCABULARY, (1, LONG))
    if kind == "fused":
        fused_loss(hidden, weight, targets, LossTerms()).backward()
    elif kind == "plain":
        F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten()).backward()
    status = Path("/proc/self/status").read_text()  # getrusage would give the parent's peak, if that was higher
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Sleeping:
    """A strategy that takes `computing_s` and computes nothing: what a step takes beyond that is the loop's."""

    def __init__(self, computing_s: float) -> None:
        self.model, self.dp_rank, self.dp_group = torch.nn.Linear(1, 1), 0, dist.group.WORLD
        self.computing_s = computing_s

    def forward_backward(self, batch: Batch) -> Tensor:
        time.sleep(self.computing_s)
        return torch.ones(())

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        return torch.ones(())

    def step_metrics(self) -> dict[str, float]:
        return {}


def loop_of(recipe: str) -> tuple[float, float]:
    """Seconds of a step that are not forward, backward or optimizer (median); the share of time spent waiting for data.

    One rank reads the whole global batch.
    """
    from types import SimpleNamespace

    from train.data import ChunkReader
    from train.heartbeat import Heartbeat
    from train.parts import Parts
    from train.patience import Patience
    from train.step import take_step
    from train.stragglers import OwnWork
    from train.views import open_view

    config = load_recipe(recipe)
    computing_s = config.data.global_batch * config.data.sequence_length / TOKENS_PER_S
    with tempfile.TemporaryDirectory() as directory, group_of_one():
        index = write_tokens(Path(directory) / "tokens", [random_tokens(6_000_000, 50_000)], vocab_size=50_000)
        reader = ChunkReader(open_view(Path(directory) / "tokens", index, config), config, 0, 1, CPU)
        optimizer = SimpleNamespace(param_groups=[], step=lambda: None, zero_grad=lambda: None)
        heartbeat, own_work = Heartbeat(Path(directory), 0, Patience(60)), OwnWork([], 0, CPU)
        unused = dict.fromkeys(("checkpoints", "log", "stop", "spikes", "provenance"))
        parts = Parts(
            *(config, Sleeping(computing_s), optimizer, reader),
            **{"heartbeat": heartbeat, "own_work": own_work, "least_token_s": 0.0, **unused},
        )
        progress, records = Progress(0, reader.order.cursor(0), 0, ""), []
        for _ in range(1 + max(LEAST_STEPS, round(LOOPED_S / computing_s))):
            progress, record = take_step(parts, progress)
            records.append(record)
        reader.close()
    seconds, waits = ([record[key] for record in records[1:]] for key in ("step_s", "data_wait_s"))
    return median(seconds) - computing_s, sum(waits) / sum(seconds)


def main() -> None:
    """Print everything."""
    result, share = measure()
    print(*result.row())
    print(f"share of the measured matrix product peak: {share:.0%}")
    base, plain, fused = (peak_bytes(kind) for kind in ("base", "plain", "fused"))
    print(
        f"loss of {LONG} positions over {WIDE_VOCABULARY} ids beyond its operands: "
        f"{(plain - base) / 2**30:.2f} GiB plain, {(fused - base) / 2**30:.2f} GiB"
    )
    for recipe in RECIPES:
        overhead_s, waiting = loop_of(recipe)
        print(f"loop of {recipe}: {overhead_s * 1000:.1f} ms a step; waits for data {waiting:.2%} of the time")


if __name__ == "__main__":
    print(_lose(sys.argv[1])) if len(sys.argv) > 1 else main()
