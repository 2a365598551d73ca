"""Two ranks of one thread against one rank of two threads: `python -m tests.benchmarks.parallel`.

Every side is a group of live processes that take turns, a step each; the others sleep. Parts of names as arguments
(`fsdp pipeline`) take the sides that have one, beside the first two. "Nothing exchanged" is what no ranks can pass:
each trains on its half of the batch, without the other.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from shared.allocator import keep_freed_memory
from shared.config import structure, unstructure
from tests.benchmarks.measure import take_turns
from tests.benchmarks.training import LENGTH, MODEL
from train.config import DataConfig, FullyShardedConfig, PipelineConfig, RunConfig, TrainingConfig
from train.data import Batch
from train.layout import lay_out
from train.optim import build_optimizer
from train.run import LARGEST_KEPT_BYTES
from train.strategy import build_strategy

BATCH, ROUNDS = 8, 2
HALF = RunConfig(MODEL, DataConfig(LENGTH, BATCH // 2), training=TrainingConfig(microbatch=4, compile=True))
ALONE = RunConfig(MODEL, DataConfig(LENGTH, BATCH), training=TrainingConfig(microbatch=4, compile=True))
PIPELINE = replace(ALONE, strategy="pipeline", training=TrainingConfig(microbatch=1, compile=True))
BOUND = "2 processes, nothing exchanged"
SIDES = {
    "1 process, 2 threads": (1, 2, ALONE),
    BOUND: (2, 1, HALF),
    "1 process, 1 thread": (1, 1, ALONE),
    "fsdp, 2 processes": (2, 1, ALONE),
    "fsdp that keeps weights gathered": (2, 1, replace(ALONE, fsdp=FullyShardedConfig(reshard_after_forward=False))),
    "fsdp of 2 copies": (2, 1, replace(ALONE, fsdp=FullyShardedConfig(shard_size=1))),
    "pipeline 1f1b, measured split": (2, 1, PIPELINE),
    "pipeline zero-bubble, measured split": (2, 1, replace(PIPELINE, pipeline=PipelineConfig(schedule="zero-bubble"))),
}


class Side:
    """The live ranks of one layout."""

    def __init__(self, num_ranks: int, num_threads: int, config: RunConfig, *, is_one_group: bool = True) -> None:
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(num_ranks)}
        environments = [{**shared, "RANK": str(rank)} for rank in range(num_ranks)]
        if not is_one_group:
            environments = [
                {**shared, "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "1", "RANK": "0"} for _ in environments
            ]
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.parallel", json.dumps(unstructure(config))],
                env={**os.environ, **environment, "OMP_NUM_THREADS": str(num_threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for environment in environments
        ]
        self.told = ""
        self._hear()  # all are ready

    def step(self) -> None:
        """One optimizer step on every rank."""
        for rank in self.ranks:
            print("step", file=rank.stdin, flush=True)
        self._hear()

    def end(self) -> str:
        """End all ranks; what they said last."""
        for rank in self.ranks:
            rank.stdin.close()
            rank.wait()
        return self.told

    def _hear(self) -> None:
        self.told, *_ = [rank.stdout.readline().strip() for rank in self.ranks]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def work(config: RunConfig) -> None:
    """One rank: a step for every line that it is told."""
    keep_freed_memory(LARGEST_KEPT_BYTES)  # as a run does
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # what tests import sets it to 1
    dist.init_process_group("gloo")
    layout = lay_out(config, dist.get_world_size())
    strategy = build_strategy(config, layout, torch.device("cpu"))
    optimizer = build_optimizer(config.optimizer, strategy.model)
    size = config.data.global_batch
    ids = torch.randint(0, MODEL.vocab, (size, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    mine = ids.chunk(layout.dp_size)[strategy.dp_rank]
    batch = Batch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous(), size * LENGTH, np.empty((0, 0), np.uint8))
    print("ready", flush=True)
    for _ in sys.stdin:
        strategy.forward_backward(batch)
        strategy.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()
        told = {name: round(value, 3) for name, value in strategy.step_metrics().items()}
        print(json.dumps({**told, "layers": strategy.facts().get("layers")}), flush=True)


def main(parts: list[str]) -> None:
    """The sides with one of these in their names in turns, and one table."""
    chosen = [name for name in SIDES if not parts or any(part in name for part in parts)]
    names = [*list(SIDES)[:2], *[name for name in chosen if name not in list(SIDES)[:2]]]
    sides = {name: Side(*SIDES[name], is_one_group=name != BOUND) for name in names}
    seconds = take_turns({name: partial(Side.step, side) for name, side in sides.items()}, ROUNDS)
    alone = seconds[next(iter(SIDES))]
    table = Table("layout", "tokens/s", "ratio", "told", title=f"{MODEL.hidden_size} x {MODEL.num_hidden_layers}, fp32")
    for name, side in sides.items():
        table.add_row(name, f"{BATCH * LENGTH / seconds[name]:,.0f}", f"{alone / seconds[name]:.2f}", side.end())
    Console(width=160).print(table)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        work(structure(json.loads(sys.argv[1]), RunConfig, "side"))
    else:
        main(sys.argv[1:])
