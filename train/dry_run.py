"""One step of a recipe on ranks that do not exist: torch's fake process group, tensors that have shapes and no values.

What a rank sends and holds is counted from the operations and tensors of the step itself, not from a formula.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.pipelining._utils import InferenceMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from train.config import RunConfig
from train.counting import Allocated, Counted, Kept
from train.data import Batch
from train.grid import Grid
from train.layout import Layout
from train.memory import BYTES_PER_PARAMETER
from train.optim import build_optimizer, create_state
from train.pipeline import PipelineStrategy
from train.strategy import kind_of_strategy, local
from train.traffic import Traffic

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Seen:
    """What a rank of one stage did in a step."""

    traffic: Traffic
    state_bytes: int
    """Of weights, gradients and two moments of AdamW."""
    activation_bytes: int
    """That autograd kept, at the peak."""
    peak_bytes: int = 0
    """Of all tensors that were alive at once, from the weights to the optimizer's step."""


def drive(config: RunConfig, layout: Layout, stage: int) -> Seen:
    """Put `layout.microbatches` microbatches through the model on the first rank of `stage`.

    The split of a pipeline is the computed one: a device that is not there cannot be measured.
    """
    config = replace(
        config,
        pipeline=replace(config.pipeline, split="computed"),
        training=replace(config.training, compile=False),  # there is nothing to run
    )
    world_size = layout.num_stages * layout.dp_size
    dist.init_process_group("fake", rank=stage * layout.dp_size, world_size=world_size, store=FakeStore())
    try:
        grid = Grid(layout, CPU)
        with _forgetful_fake_mode(), Allocated() as allocated:
            seen = _drive(config, layout, grid)
            return replace(seen, peak_bytes=allocated.peak)
    finally:
        dist.destroy_process_group()


def _drive(config: RunConfig, layout: Layout, grid: Grid) -> Seen:
    strategy = kind_of_strategy(config, layout)(config, layout, CPU, grid)
    if isinstance(strategy, PipelineStrategy):
        strategy.schedule._warmup_p2p = _agree  # asks the neighbours, of which there are none
        vars(strategy)["_is_set"] = lambda _: False  # it has no value
    optimizer = build_optimizer(config.optimizer, strategy.model)
    create_state(optimizer)
    size = config.microbatch * layout.microbatches, config.data.sequence_length
    ids = torch.zeros(size, dtype=torch.long)
    batch = Batch(ids, ids.clone(), math.prod(size) * layout.dp_size, np.empty((0, 0), np.uint8))
    with Kept() as kept, Counted() as counted:
        strategy.forward_backward(batch)
    strategy.clip_grad_norm(1.0)
    optimizer.step()
    held = sum(local(parameter.detach()).numel() for parameter in strategy.model.parameters())
    return Seen(+counted.traffic, held * BYTES_PER_PARAMETER, kept.peak)


def _forgetful_fake_mode() -> FakeTensorMode:
    """A weight made on the meta device is swapped for one with a storage; torch refuses that for one it remembers."""

    def forget(tensor: Tensor, fake: Tensor) -> None:
        del tensor, fake

    mode = FakeTensorMode()
    vars(mode.fake_tensor_converter)["set_tensor_memo"] = forget
    return mode


def _agree(stages: list[Any], has_backward: bool, p2p_done: bool) -> None:
    del has_backward, p2p_done
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC
