"""The optimizer, and its learning rate as a pure function of the step."""

import math

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from train.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` completed ones.

    Linear from the minimum to the peak over the warmup, then half a cosine to the minimum at `total_steps`.

    >>> config = OptimizerConfig(learning_rate=3.0, min_learning_rate=1.0, warmup_steps=10)
    >>> [learning_rate(config, 110, step) for step in (0, 5, 10, 60, 110, 500)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 1.0]
    """
    low, high = config.min_learning_rate, config.learning_rate
    if step < config.warmup_steps:
        return low + (high - low) * step / config.warmup_steps
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> AdamW:
    """AdamW over the model's parameters; weight decay acts on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use `rate` in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def create_state(optimizer: Optimizer) -> None:
    """Give every parameter its optimizer state, as a place to load a checkpoint's into; no weight moves."""
    set_learning_rate(optimizer, 0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
