"""Causal attention with grouped keys, within a window or documents, that never holds the scores of all positions.

Legend: B sequences, T positions, C hidden_size, H heads, D head_dim.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from train import flash
from train.architecture import ArgonneConfig
from train.layers import RMSNorm, RotaryTable, rotate
from train.linear import Linear, is_plain_fp32
from train.pieces import attend_in_pieces

Scope = Tensor | BlockMask
"""Where a position may look: starts_BT (the first position of its document), or that as flex_attention wants it."""


class KeyValueCache:
    """Keys and values of the positions that one block has seen."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, these included."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat((self.keys, keys), dim=2), torch.cat((self.values, values), dim=2)
        self.keys, self.values = keys, values
        return keys, values


def visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Bool (queries, keys): which keys each of the last `num_queries` positions may look at."""
    query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    distance = query - torch.arange(num_keys, device=device)[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def scope_of(config: ArgonneConfig, starts_BT: Tensor | None, x: Tensor) -> Scope | None:
    """What all blocks need to keep to the window and to the documents; None if all that came before is seen."""
    if starts_BT is None and (config.sliding_window is None or config.sliding_window >= x.shape[1]):
        return None
    if starts_BT is None:
        starts_BT = torch.zeros(x.shape[:2], dtype=torch.int32, device=x.device)
    has_dropout = config.attention_dropout > 0
    if x.device.type != "cuda" or has_dropout or not config.use_flash_attention:
        return starts_BT
    return block_mask(starts_BT, config.sliding_window)


def block_mask(starts_BT: Tensor, window: int | None) -> BlockMask:
    """The window and the documents for flex_attention. Source: Dong et al., FlexAttention, arXiv 2412.05496."""

    def is_seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001
        seen = (key <= query) & (key >= starts_BT[b, query])
        return seen if window is None else seen & (query - key < window)

    num_rows, length = starts_BT.shape
    return create_block_mask(is_seen, num_rows, None, length, length, device=starts_BT.device)


@cache
def _flex() -> Callable[..., Any]:
    """flex_attention makes the scores of all positions unless it is compiled, also where the block is not."""
    return torch.compile(flex_attention, dynamic=False)


class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of query heads share a key and a value head."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.config = config
        self.has_kernel = False
        """Whether fp32 on a CPU goes through flash.py."""
        width, kv_width = config.hidden_size, config.kv_heads * config.head_dim
        self.q_proj = Linear(width, config.query_width, bias=config.attention_bias)
        self.k_proj = Linear(width, kv_width, bias=config.attention_bias)
        self.v_proj = Linear(width, kv_width, bias=config.attention_bias)
        self.o_proj = Linear(config.query_width, width, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self, x_BTC: Tensor, table: RotaryTable | None, scope: Scope | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """(B, T, C) of what each position gathered from the positions up to it."""
        q, k, v = (self._heads(projection(x_BTC)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v = cache.extend(k, v)
        gathered_BHTD = self._attend(q, k, v, scope)
        projected: Tensor = self.o_proj(gathered_BHTD.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.view(*x_BTC.shape[:2], -1, self.config.head_dim).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scope: Scope | None) -> Tensor:
        config = self.config
        dropout = config.attention_dropout if self.training else 0.0
        is_square = q.shape[2] == k.shape[2]
        is_whole = config.sliding_window is None or config.sliding_window >= k.shape[2]
        if self.has_kernel and is_square and not dropout and is_plain_fp32(q, k) and not isinstance(scope, BlockMask):
            return flash.attend(q, k, v, scope, config.sliding_window)
        if config.use_flash_attention and is_square and is_whole and scope is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=True)
        if isinstance(scope, BlockMask):
            gathered: Tensor = _flex()(q, k, v, block_mask=scope, enable_gqa=True)
            return gathered
        if config.use_flash_attention and is_square and scope is not None and not dropout:
            return attend_in_pieces(q, k, v, scope, config.sliding_window)
        mask = visible(q.shape[2], k.shape[2], config.sliding_window, q.device)
        if scope is not None and is_square:
            mask = mask & (torch.arange(k.shape[2], device=q.device) >= scope[:, None, :, None])
        if config.use_flash_attention:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=True)
        return self._attend_plainly(q, k, v, mask, dropout)

    def _attend_plainly(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(self.config.head_dim)
        weights = F.dropout(scores.masked_fill(~mask, -math.inf).softmax(-1), dropout).to(q.dtype)
        return weights @ v
