"""The small layers of a block: norm, rotary table, SwiGLU.

Legend: B sequences, T positions, C hidden_size, H heads, D head_dim.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from train.architecture import ArgonneConfig
from train.linear import Linear

RotaryTable = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) * weight, with the mean of squares in fp32. Source: Zhang and Sennrich, arXiv 1910.07467."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def rotary_table(positions: Tensor, head_dim: int, theta: float) -> RotaryTable:
    """Cosines and sines (..., D) in fp32 of `positions` for half rotation: element i pairs with element i + D/2.

    Computed where it is used: a table that is stored can be lost (meta-device init) or rounded (a bf16 model).

    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions.float()[..., None] * theta**-exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, table: RotaryTable) -> Tensor:
    """`x_BHTD` with each pair of elements turned by its position's angle; the table is (T, D) or (B, 1, T, D)."""
    cosines, sines = table
    left, right = x_BHTD.chunk(2, dim=-1)
    return (x_BHTD * cosines + torch.cat((-right, left), dim=-1) * sines).to(x_BHTD.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.feed_forward, bias=config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.feed_forward, bias=config.mlp_bias)
        self.down_proj = Linear(config.feed_forward, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out
