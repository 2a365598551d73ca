"""Fully sharded data parallelism: every rank holds a slice of every parameter and reads a slice of every batch."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from train.building import build_model
from train.config import RunConfig
from train.data import Batch
from train.layout import Layout
from train.strategy import clip_gradients, evaluating, materialize, precision_context, squared_norm


class FullyShardedStrategy:
    """`fully_shard` on each block, then on the rest. One rank is the plain case of it."""

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device) -> None:
        self.config, self.layout, self.device = config, layout, device
        mesh = init_device_mesh(device.type, (layout.dp_size,), mesh_dim_names=("data",))
        self.dp_rank = mesh.get_local_rank("data")
        self.dp_group = mesh.get_group("data")
        model = build_model(config)
        for block in model.blocks.values():
            fully_shard(block, mesh=mesh)
        self.model = model
        self.sharded = fully_shard(model, mesh=mesh)
        materialize(model, config, device)

    def forward_backward(self, batch: Batch) -> Tensor:
        """See Strategy. Gradients travel once, after the last microbatch."""
        total = torch.zeros((), device=self.device)
        for number, microbatch in enumerate(batch.split(self.layout.microbatches), start=1):
            self.sharded.set_requires_gradient_sync(number == self.layout.microbatches)
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
        self.sharded.reshard()  # a forward pass alone leaves the root's parameters whole: not the optimizer's
        dist.all_reduce(total)
        return total

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """See Strategy."""
        total = squared_norm(self.model.parameters(), self.device)
        dist.all_reduce(total)
        norm = total.sqrt()
        clip_gradients(self.model.parameters(), norm, max_norm)
        return norm

    def _loss(self, batch: Batch) -> Tensor:
        with precision_context(self.config, self.device):
            loss: Tensor = self.model(batch.inputs_BT, batch.targets_BT, batch.starts_BT)
            return loss
