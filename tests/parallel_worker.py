"""One rank of a test: what some recipes give on this many ranks, a few steps each, as JSON lines of rank 0."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from shared.config import structure
from train.collective import leave
from train.config import RunConfig
from train.data import Batch
from train.layout import lay_out
from train.strategy import build_strategy

CPU = torch.device("cpu")


def main(jobs_path: str) -> None:
    dist.init_process_group("gloo")
    results = [_outcome(structure(job, RunConfig, "job")) for job in json.loads(Path(jobs_path).read_text())]
    if dist.get_rank() == 0:
        Path(jobs_path).with_suffix(".results").write_text(json.dumps(results))
    dist.destroy_process_group()
    leave(0)


def _outcome(config: RunConfig) -> dict:
    layout = lay_out(config, dist.get_world_size())
    strategy = build_strategy(config, layout, CPU)
    generator = torch.Generator().manual_seed(3)
    size = config.data.global_batch, config.data.sequence_length + 1
    steps = []
    for _ in range(2):
        ids = torch.randint(0, config.model.vocab, size, generator=generator)
        mine = ids.chunk(layout.dp_size)[strategy.dp_rank]
        batch = Batch(mine[:, :-1].contiguous(), mine[:, 1:].contiguous(), ids[:, 1:].numel(), np.empty((0, 0)))
        validation = strategy.evaluate(batch).item()
        loss = strategy.forward_backward(batch).item()
        norm = strategy.clip_grad_norm(1.0).item()
        steps.append({"validation": validation, "loss": loss, "norm": norm, **strategy.step_metrics()})
        with torch.no_grad():
            for parameter in strategy.model.parameters():
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
    return {"layout": str(layout), "steps": steps, **strategy.facts()}


if __name__ == "__main__":
    main(sys.argv[1])
