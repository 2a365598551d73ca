"""One real step on real ranks: do they find each other, add up numbers alike, and learn a little model together?

`start` runs this module on each rank; what they find is printed by rank 0 as a line of JSON.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from shared.config import structure
from shared.terminal import safe_text
from train.collective import gather, leave
from train.config import RunConfig
from train.data import Batch
from train.layout import lay_out
from train.optim import build_optimizer
from train.strategy import build_strategy

LIMIT_S, POLL_S = 60.0, 0.02
MEETING = "ARGONNE_MEETING"  # where ranks find each other
MODEL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}
LENGTH = 64
RECIPE = {"model": MODEL, "strategy": "fsdp", "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}}


@dataclass(frozen=True)
class Smoke:
    """What the ranks have found."""

    device: str
    backend: str
    ranks: int
    group_s: float
    """From the first rank's wish to meet to a sum that is right on all."""
    losses: tuple[float, float]
    """Before the step and after it, of the same batch, the same on all ranks."""
    step_s: float


class Ranks:
    """Processes that do one step together; they begin at once, and are asked later."""

    def __init__(self, num_processes: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="argonne-doctor-")
        self._words = [Path(self._directory.name) / f"rank{rank}" for rank in range(num_processes)]
        self._ranks = [self._start(rank, num_processes) for rank in range(num_processes)]

    def wait(self, limit_s: float = LIMIT_S) -> Smoke | str:
        """What they have found, or the last words of the first that failed; none is left."""
        end_s = time.monotonic() + limit_s
        try:
            while None in (codes := [rank.poll() for rank in self._ranks]) and not any(codes):
                if time.monotonic() > end_s:
                    return f"no end within {limit_s:g} s"
                time.sleep(POLL_S)
            said = [words.read_text(errors="replace").strip().splitlines() for words in self._words]
            for rank, (process, lines) in enumerate(zip(self._ranks, said, strict=True)):
                if process.returncode:
                    return f"rank {rank}: {safe_text(lines[-1]) if lines else f'exit code {process.returncode}'}"
            found = json.loads(said[0][-1])
            return Smoke(**{**found, "losses": tuple(found["losses"])})
        finally:
            self.end()

    def end(self) -> None:
        """Leave none."""
        for rank in self._ranks:
            rank.kill()
            rank.wait()
        self._directory.cleanup()

    def _start(self, rank: int, num_processes: int) -> "subprocess.Popen[bytes]":
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": num_processes,
            "LOCAL_WORLD_SIZE": num_processes,
            MEETING: Path(self._directory.name) / "meeting",
            "OMP_NUM_THREADS": 1,
        }
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        with open(self._words[rank], "wb") as words:
            return subprocess.Popen(
                [sys.executable, "-m", "train.smoke"], env=environment, stdout=words, stderr=subprocess.STDOUT
            )


def main() -> None:
    """Be one of the ranks."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    has_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if has_gpu else torch.device("cpu")
    if has_gpu:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if has_gpu else "gloo"
    began = time.perf_counter()
    dist.init_process_group(backend, f"file://{os.environ[MEETING]}", rank=rank, world_size=size)
    total = torch.tensor([float(rank + 1)], device=device)
    dist.all_reduce(total)
    check_sum(total.item(), size)
    group_s = time.perf_counter() - began
    losses, step_s = _step(device, size)
    found = Smoke(device.type, backend, size, group_s, losses, step_s)
    if rank == 0:
        print(json.dumps(asdict(found)))
    dist.destroy_process_group()
    leave(0)


def _step(device: torch.device, size: int) -> tuple[tuple[float, float], float]:
    """The losses of one batch before and after a step by it; how long the step took.

    Raises: RuntimeError if a loss is not finite, or the ranks have other ones.
    """
    config = structure({**RECIPE, "data": {"sequence_length": LENGTH, "global_batch": size}}, RunConfig, "doctor")
    strategy = build_strategy(config, lay_out(config, size), device)
    optimizer = build_optimizer(config.optimizer, strategy.model)
    ids = torch.randint(MODEL["vocab_size"], (size, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    mine = ids[strategy.dp_rank : strategy.dp_rank + 1].to(device)
    batch = Batch(mine[:, :-1], mine[:, 1:], size * LENGTH, np.empty((0, 0), np.uint8))
    began = time.perf_counter()
    before = strategy.forward_backward(batch)
    strategy.clip_grad_norm(1.0)
    optimizer.step()
    after = strategy.evaluate(batch)
    losses = (before.item(), after.item())
    step_s = time.perf_counter() - began
    check_losses(gather(losses))
    return losses, step_s


def check_sum(total: float, size: int) -> None:
    """Raises: RuntimeError if `total` is not what the numbers 1 to `size`, one of each rank, add up to."""
    if total != size * (size + 1) / 2:
        raise RuntimeError(f"ranks 1 to {size} add up to {total:g}, not {size * (size + 1) // 2}")


def check_losses(seen: list[tuple[float, float]]) -> None:
    """Raises: RuntimeError if the losses that each rank has seen are not all finite and alike."""
    if len(set(seen)) > 1 or not all(math.isfinite(loss) for losses in seen for loss in losses):
        raise RuntimeError(f"the losses of one step on {len(seen)} ranks are {seen}: they are to be finite and alike")


if __name__ == "__main__":
    main()
