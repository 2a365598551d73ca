"""Argonne 1.x, for what it was: learned positions, LayerNorm, GELU, biases, every head its own keys, an untied head.

It is an ArgonneModel in all that strategies, checkpoints and sampling ask of one. Its parameters have the names of
today (legacy_names.py), its old classes their old names too.

Legend: B sequences, T positions, C hidden_size.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from train.architecture import ArgonneConfig, rename_legacy
from train.attention import GroupedQueryAttention
from train.layers import RotaryTable
from train.linear import Linear
from train.model import ArgonneModel, Block, Part

EPSILON = 1e-5
CausalSelfAttention = GroupedQueryAttention
"""As 1.x called it: nothing is rotated where the model gives no table."""


class MLP(nn.Module):
    """down(gelu(up(x))), with biases."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.hidden_size, config.feed_forward, bias=True)
        self.down_proj = Linear(config.feed_forward, config.hidden_size, bias=True)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        out: Tensor = self.down_proj(self.dropout(F.gelu(self.up_proj(x))))
        return out


class LegacyBlock(Block):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__(config)
        self.input_norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.post_norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)


class LegacyModel(ArgonneModel):
    """Token ids (B, T) -> logits (B, T, V), or the loss of targets, which nobody shifts here either."""

    block_type = LegacyBlock

    def __init__(self, config: ArgonneConfig, part: Part | None = None) -> None:
        super().__init__(config, part)
        if self.part.is_first:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
            self.dropout = nn.Dropout(config.hidden_dropout)
        if self.part.is_last:
            self.norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def _embed(self, ids_BT: Tensor, start: int, starts_BT: Tensor | None) -> Tensor:
        positions = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)
        if starts_BT is not None and self.restart_positions:
            positions = positions - starts_BT
        x: Tensor = self.dropout(self.embed_tokens(ids_BT) + self.embed_positions(positions))
        return x

    def _table(self, x: Tensor, start: int, starts_BT: Tensor | None) -> RotaryTable | None:
        del x, start, starts_BT
        return None


def legacy_config(**names: Any) -> ArgonneConfig:
    """The architecture of a 1.x configuration, by its names: vocab_size, block_size, n_layer, n_head, n_embd, dropout.

    >>> legacy_config(vocab_size=12000, block_size=2048, n_layer=12, n_head=12, n_embd=1296).feed_forward
    5184
    """
    names = {"vocab_size": 12000, "block_size": 2048, "n_layer": 24, "n_head": 24, "n_embd": 1296} | names
    dropout = names.pop("dropout", 0.1)
    names.pop("use_gradient_checkpointing", None)  # no part of the architecture
    flash = names.pop("use_flash_attn", True)
    sizes = rename_legacy(names)
    return ArgonneConfig(
        **{
            "architecture": "argonne-1",
            "num_key_value_heads": sizes["num_attention_heads"],
            "intermediate_size": 4 * sizes["hidden_size"],
            "attention_dropout": dropout,
            "hidden_dropout": dropout,
            "rms_norm_eps": EPSILON,
            "use_flash_attention": flash,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            **sizes,
        }
    )
