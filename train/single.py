"""The whole model on one rank: nothing is gathered, copied or sent."""

from typing import Any

import torch
from torch import Tensor

from train.building import build_model
from train.compilation import compiled_share
from train.config import RunConfig
from train.data import Batch
from train.grid import Grid
from train.layout import Layout
from train.memory_errors import whole_or_nothing
from train.model import ArgonneModel
from train.strategy import clip_gradients, evaluating, materialize, precision_context, squared_norm


class SingleStrategy:
    """A forward and a backward pass for each microbatch. fsdp.py adds what more ranks need."""

    averaged_over = 1
    """Ranks that gradients are averaged over where they should be added up: the loss is a sum over ranks."""

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device, grid: Grid) -> None:
        self.config, self.layout, self.device = config, layout, device
        self.dp_rank, self.dp_group = grid.dp_rank, grid.dp_group
        self.model = build_model(config)
        self.parts = [self.model]
        self._spread(self.model, grid)
        materialize(self.model, config, device)

    def use_microbatch(self, config: RunConfig, layout: Layout) -> None:
        """See Strategy."""
        self.config, self.layout = config, layout

    def forward_backward(self, batch: Batch) -> Tensor:
        """See Strategy."""
        return whole_or_nothing(lambda: self._forward_backward(batch), self.model)

    def evaluate(self, batch: Batch) -> Tensor:
        """See Strategy."""
        return whole_or_nothing(lambda: self._evaluate(batch), self.model)

    def _forward_backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        for microbatch in batch.split(self.layout.microbatches):
            total += self._backward(microbatch, batch.num_targets)
        return total

    def _evaluate(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        with evaluating(self.model):
            for microbatch in batch.split(self.layout.microbatches):
                total += self._loss(microbatch) / batch.num_targets
        return total

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """See Strategy."""
        norm = self._squared_norm().sqrt().float()
        clip_gradients(self.model.parameters(), norm, max_norm)
        return norm

    def step_metrics(self) -> dict[str, float]:
        """See Strategy. `compiled`: the share of the model's parts whose blocks are compiled, if the recipe asks."""
        return {"compiled": compiled_share(self.parts)} if self.config.training.compile else {}

    def facts(self) -> dict[str, Any]:
        """See Strategy."""
        return {}

    def _spread(self, model: ArgonneModel, grid: Grid) -> None:
        """Spread a model without storage over ranks."""

    def _squared_norm(self) -> Tensor:
        return squared_norm(self.model.parameters(), self.device)

    def _backward(self, microbatch: Batch, num_targets: int) -> Tensor:
        """The microbatch's share of the mean loss; its gradient is added to what is there."""
        loss = self._loss(microbatch) / num_targets
        torch.autograd.backward(loss * self.averaged_over)
        return loss.detach()

    def _loss(self, batch: Batch) -> Tensor:
        with precision_context(self.config, self.device):
            loss: Tensor = self.model(batch.inputs_BT, batch.targets_BT, batch.starts_BT)
            return loss
