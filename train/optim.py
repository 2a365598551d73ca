"""The optimizer of a recipe over the parameters that one rank holds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from train.config import OptimizerConfig
from train.muon import MuonAndAdamW


def group_of(name: str, num_dims: int) -> str:
    """Which group a parameter is in; its name and its shape say it, so it is the same in every layout.

    >>> [group_of("blocks.3.mlp.up_proj.weight", 2), group_of("blocks.3.post_norm.weight", 1)]
    ['matrices', 'vectors']
    >>> [group_of("embed_tokens.weight", 2), group_of("lm_head.weight", 2)]
    ['embeddings', 'embeddings']
    """
    if num_dims < 2:
        return "vectors"
    return "matrices" if name.startswith("blocks.") else "embeddings"


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Optimizer:
    """AdamW over the model's parameters, or Muon over the matrices of its blocks and AdamW over the rest."""
    groups = _groups(config, model)
    adamw: dict[str, Any] = {"betas": (config.beta1, config.beta2), "eps": config.epsilon, "fused": True}
    if config.name == "muon":
        return MuonAndAdamW(groups, config.learning_rate, config.momentum, adamw)
    return AdamW(groups, lr=config.learning_rate, **adamw)


def _groups(config: OptimizerConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Those groups that have parameters here."""
    decay = config.weight_decay
    decays = {"matrices": decay, "embeddings": decay if config.decay_embeddings else 0.0, "vectors": 0.0}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in decays}
    for name, parameter in model.named_parameters():
        members[group_of(name, parameter.ndim)].append(parameter)
    return [
        {"name": name, "params": members[name], "weight_decay": decays[name], "muon": name == "matrices"}
        for name in decays
        if members[name]
    ]


def set_learning_rates(optimizer: Optimizer, rates: Mapping[str, float]) -> None:
    """Use `rates`, named as in the metrics, in the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rates[f"lr_{group['name']}"]


def create_state(optimizer: Optimizer) -> None:
    """Give every parameter its optimizer state, that of no step, if it has none yet; no weight moves.

    It takes the memory of a whole step. A checkpoint's state is loaded into it.
    """
    if optimizer.state:
        return
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
