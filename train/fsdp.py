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

from train.compilation import compiled_share
from train.config import RunConfig
from train.data import Batch
from train.grid import Grid
from train.model import ArgonneModel
from train.single import SingleStrategy
from train.strategy import PRECISIONS


class FullyShardedStrategy(SingleStrategy):
    """`fully_shard` on each block, then on the rest.

    A rank that runs out of memory raises that error alone: the others wait in a collective and cannot be told.
    """

    def forward_backward(self, batch: Batch) -> Tensor:
        """See Strategy. Gradients travel once, after the last microbatch."""
        reshards = self.config.fsdp.reshard_after_forward
        total = torch.zeros((), device=self.device)
        for number, microbatch in enumerate(batch.split(self.layout.microbatches), start=1):
            is_last = number == self.layout.microbatches
            self.sharded.set_requires_gradient_sync(is_last)
            self.sharded.set_reshard_after_backward(is_last or reshards)  # else the next one finds them gathered
            total += self._backward(microbatch, batch.num_targets)
        told = torch.stack((total, total.new_full((), compiled_share(self.parts))))
        dist.all_reduce(told)
        self.compiled_ranks = told[1]
        return told[0]

    def evaluate(self, batch: Batch) -> Tensor:
        """See Strategy."""
        total = self._evaluate(batch)
        reshard(self.model)
        dist.all_reduce(total)
        return total

    def step_metrics(self) -> dict[str, float]:
        """See SingleStrategy; the mean over ranks."""
        if not self.config.training.compile:
            return {}
        return {"compiled": self.compiled_ranks.item() / self.layout.dp_size}

    def _spread(self, model: ArgonneModel, grid: Grid) -> None:
        self.shard_group = grid.shard_group
        self.sharded = shard(model, grid.weights, self.config, self.config.fsdp.reshard_after_forward)
        self.averaged_over = self.layout.dp_size

    def _squared_norm(self) -> Tensor:
        total = super()._squared_norm()
        dist.all_reduce(total, group=self.shard_group)
        return total


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
