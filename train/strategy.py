"""What the loop knows of parallelism: one protocol. single.py, fsdp.py and pipeline.py implement it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.config import RunConfig
from train.data import Batch
from train.grid import Grid
from train.layout import Layout
from train.model import ArgonneModel

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "float8": torch.bfloat16}


class Strategy(Protocol):
    """A model spread over ranks. Every rank calls every method, in the same order."""

    @property
    def model(self) -> nn.Module:
        """What this rank holds of the model, under the names of the whole model."""

    @property
    def parts(self) -> Sequence[ArgonneModel]:
        """The parts of the model that this rank holds, in the order of their layers."""

    @property
    def dp_rank(self) -> int:
        """Which slice of a global batch this rank reads."""

    @property
    def dp_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same part of the model and read different slices."""

    @property
    def config(self) -> RunConfig:
        """The recipe, with the microbatch that is used now."""

    @property
    def layout(self) -> Layout:
        """The ranks, with the number of microbatches that a step has now."""

    def forward_backward(self, batch: Batch) -> Tensor:
        """Mean loss over the global batch's targets, the same on every rank; its gradient is in the parameters.

        Raises: StepOutOfMemory on every rank alike, where that can be agreed: else the error on the rank that had it.
        """

    def use_microbatch(self, config: RunConfig, layout: Layout) -> None:
        """Go through batches as `layout` says, in the microbatches of `config`, from now on; nothing else changes."""

    def evaluate(self, batch: Batch) -> Tensor:
        """Mean loss over the global batch's targets, the same on every rank; nothing changes.

        Raises: as forward_backward.
        """

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Norm of the whole model's gradient, which is scaled down to `max_norm` where it is larger."""

    def step_metrics(self) -> dict[str, float]:
        """What is known of the last forward_backward beside its loss; call it when the device has done the step."""

    def facts(self) -> dict[str, Any]:
        """What this start of the run has found out about its device and decided by it."""


def build_strategy(config: RunConfig, layout: Layout, device: torch.device) -> Strategy:
    """The strategy that `config` names, with its weights initialized. Every rank must call it."""
    return kind_of_strategy(config, layout)(config, layout, device, Grid(layout, device))


def kind_of_strategy(config: RunConfig, layout: Layout) -> Callable[..., Strategy]:
    """What makes the strategy that `config` names."""
    from train.fsdp import FullyShardedStrategy
    from train.pipeline import PipelineStrategy
    from train.single import SingleStrategy

    if config.strategy == "pipeline":
        return PipelineStrategy
    return FullyShardedStrategy if layout.dp_size > 1 else SingleStrategy


def materialize(model: ArgonneModel, config: RunConfig, device: torch.device) -> None:
    """Give a model built on the meta device its storage on `device` and its initial weights."""
    model.to_empty(device=device)
    model.initialize(config.training.seed)


def precision_context(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products inside it run in the recipe's precision."""
    dtype = PRECISIONS[config.training.precision]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; afterwards the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, max_norm: float) -> None:
    """Scale the gradients by max_norm / norm where that is less than one."""
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).mul_(scale)


def squared_norm(parameters: Iterable[nn.Parameter], device: torch.device) -> Tensor:
    """Sum of the squares of the gradients' elements that this rank holds.

    Each gradient's in fp32, row by row, their sum in fp64: so fine that it does not tell which ranks hold which
    parameters.
    """
    rows = [torch.linalg.vector_norm(local(p.grad).float(), dim=-1) for p in parameters if p.grad is not None]
    squares = [norms.square().sum() for norms in rows]
    return torch.stack(squares).double().sum() if squares else torch.zeros((), dtype=torch.float64, device=device)


def local(gradient: Tensor) -> Tensor:
    """What this rank holds of a gradient."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
