"""Initial weights: a function of the seed and a parameter's name alone, the same in every layout."""

import hashlib
import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from train.architecture import ArgonneConfig


@torch.no_grad()
def initialize(model: nn.Module, config: ArgonneConfig, seed: int) -> None:
    """Fill every parameter of `model`, or this rank's shard of it.

    Norms are ones, biases zeros, matrices normal. Projections back into the residual stream are scaled down by the
    square root of their number; the spread is small enough that the first loss is close to ln(vocabulary).
    """
    for name, parameter in model.named_parameters():
        _fill(parameter, _initial(name, parameter.shape, config, seed))


def _initial(name: str, shape: torch.Size, config: ArgonneConfig, seed: int) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    deviation = min(0.02, 0.5 / math.sqrt(config.hidden_size))
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        deviation /= math.sqrt(2 * config.num_hidden_layers)
    key = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
    return torch.empty(shape).normal_(0.0, deviation, generator=generator)


def _fill(parameter: nn.Parameter, values: Tensor) -> None:
    """Copy `values`, or this rank's shard of them, into `parameter`; no communication."""
    if isinstance(parameter, DTensor):
        shard = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(shard.to_local())
    else:
        parameter.copy_(values)
