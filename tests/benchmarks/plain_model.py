"""The arithmetic of our model by ordinary torch code, over its weights by name: all logits, no code of `train`.

So nothing done to the trainer's model (its products, its attention, its loss, what it computes again) is on both sides
of a comparison. Written for what `parity` trains: an untied head, no biases, windows, documents or dropout.

Legend: B sequences, T positions, C hidden size, H heads, D head size, V vocabulary.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from train.architecture import ArgonneConfig

Weights = Mapping[str, Tensor]


def plain_logits(weights: Weights, config: ArgonneConfig, ids_BT: Tensor) -> Tensor:
    """(B, T, V)."""
    size, half = config.hidden_size, config.head_dim // 2
    rates = config.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
    angles_TD = (torch.arange(ids_BT.shape[1])[:, None] * rates).repeat(1, 2)
    x = F.embedding(ids_BT, weights["embed_tokens.weight"])
    for number in range(config.num_hidden_layers):
        prefix = f"blocks.{number}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        normed = F.rms_norm(x, (size,), block["input_norm.weight"], config.rms_norm_eps)
        x = x + _attention(block, config.num_attention_heads, config.head_dim, normed, angles_TD)
        normed = F.rms_norm(x, (size,), block["post_norm.weight"], config.rms_norm_eps)
        gate, up = (F.linear(normed, block[f"mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, block["mlp.down_proj.weight"])
    x = F.rms_norm(x, (size,), weights["norm.weight"], config.rms_norm_eps)
    return F.linear(x, weights["lm_head.weight"])


def _attention(block: Weights, num_heads: int, head_dim: int, x_BTC: Tensor, angles_TD: Tensor) -> Tensor:
    q, k, v = (
        F.linear(x_BTC, block[f"attn.{name}_proj.weight"]).unflatten(-1, (-1, head_dim)).transpose(1, 2)
        for name in ("q", "k", "v")
    )
    q, k = _rotated(q, angles_TD), _rotated(k, angles_TD)
    k, v = (x.repeat_interleave(num_heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / head_dim**0.5
    is_later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    attended_BHTD = scores.masked_fill(is_later, -torch.inf).softmax(-1) @ v
    return F.linear(attended_BHTD.transpose(1, 2).flatten(2), block["attn.o_proj.weight"])


def _rotated(x_BHTD: Tensor, angles_TD: Tensor) -> Tensor:
    left, right = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * angles_TD.cos() + torch.cat((-right, left), dim=-1) * angles_TD.sin()
