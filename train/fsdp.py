"""Fully sharded data parallelism: every rank holds a slice of every parameter and reads a slice of every batch.

With `fsdp.shard_size` the slices are of a copy that so many ranks share, and the copies are kept equal (hybrid).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from train.building import build_model
from train.config import RunConfig
from train.data import Batch
from train.grid import Grid
from train.layout import Layout
from train.model import ArgonneModel
from train.strategy import (
    PRECISIONS,
    clip_gradients,
    evaluating,
    materialize,
    precision_context,
    squared_norm,
)


class FullyShardedStrategy:
    """`fully_shard` on each block, then on the rest. One rank is the plain case of it."""

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device, grid: Grid) -> None:
        self.config, self.layout, self.device = config, layout, device
        self.dp_rank, self.dp_group, self.shard_group = grid.dp_rank, grid.dp_group, grid.shard_group
        self.model = build_model(config)
        self.parts = [self.model]
        self.reshards = config.fsdp.reshard_after_forward
        self.sharded = shard(self.model, grid.weights, config, self.reshards)
        materialize(self.model, config, device)

    def use_microbatch(self, config: RunConfig, layout: Layout) -> None:
        """See Strategy."""
        self.config, self.layout = config, layout

    def forward_backward(self, batch: Batch) -> Tensor:
        """See Strategy. Gradients travel once, after the last microbatch."""
        total = torch.zeros((), device=self.device)
        for number, microbatch in enumerate(batch.split(self.layout.microbatches), start=1):
            is_last = number == self.layout.microbatches
            self.sharded.set_requires_gradient_sync(is_last)
            self.sharded.set_reshard_after_backward(is_last or self.reshards)  # else the next one finds them gathered
            loss = self._loss(microbatch) / batch.num_targets
            torch.autograd.backward(
                loss * self.layout.dp_size
            )  # fully_shard averages over ranks; the loss is a sum over them
            total += loss.detach()
        dist.all_reduce(total)
        return total

    def evaluate(self, batch: Batch) -> Tensor:
        """See Strategy."""
        total = torch.zeros((), device=self.device)
        with evaluating(self.model):
            for microbatch in batch.split(self.layout.microbatches):
                total += self._loss(microbatch) / batch.num_targets
        reshard(self.model)
        dist.all_reduce(total)
        return total

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """See Strategy."""
        total = squared_norm(self.model.parameters(), self.device)
        dist.all_reduce(total, group=self.shard_group)
        norm = total.sqrt().float()
        clip_gradients(self.model.parameters(), norm, max_norm)
        return norm

    def step_metrics(self) -> dict[str, float]:
        """See Strategy."""
        return {}

    def facts(self) -> dict[str, Any]:
        """See Strategy."""
        return {}

    def _loss(self, batch: Batch) -> Tensor:
        with precision_context(self.config, self.device):
            loss: Tensor = self.model(batch.inputs_BT, batch.targets_BT, batch.starts_BT)
            return loss


def shard(model: ArgonneModel, weights: DeviceMesh, config: RunConfig, reshards: bool) -> FSDPModule:
    """`model`, a block at a time, spread over the last axis of a mesh and copied over the one before it.

    In bf16 blocks are gathered in that precision, which halves the bytes; their gradients are added up in fp32, and
    everything outside of the matrix products stays fp32, as without sharding.
    """
    dtype = PRECISIONS[config.training.precision]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32, cast_forward_inputs=False)
    blocks = list(model.blocks.values())
    for block in blocks:
        fully_shard(block, mesh=weights, reshard_after_forward=reshards, mp_policy=policy)
    root = fully_shard(model, mesh=weights, reshard_after_forward=False)
    if reshards and config.fsdp.prefetch:
        _prefetch([root, *blocks], config.fsdp.prefetch)
    return root


def _prefetch(modules: list[Any], ahead: int) -> None:
    """Gather the next `ahead` modules while one computes, in the order of the forward and of the backward pass."""
    for number, module in enumerate(modules):
        module.set_modules_to_forward_prefetch(modules[number + 1 : number + 1 + ahead])
        if number > 1:  # the root is gathered all the time
            module.set_modules_to_backward_prefetch(modules[max(number - ahead, 1) : number][::-1])


def reshard(model: nn.Module) -> None:
    """Give back all gathered weights: a forward pass alone leaves some, which are not the optimizer's."""
    for module in sharded_modules(model):
        module.reshard()


def sharded_modules(model: nn.Module) -> Iterator[FSDPModule]:
    """Every module of `model` that is gathered as one."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))
