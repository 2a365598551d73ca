"""ArgonneModel: a decoder of pre-norm blocks with rotary attention, grouped key/value heads and SwiGLU.

A model may hold only a part of the layers (a pipeline stage). Blocks keep their number in the whole model as their
name, so a parameter has the same name in every layout.

Legend: B sequences, T positions, C hidden_size, H heads, D head_dim, V vocabulary.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from train.architecture import ArgonneConfig

EMBEDDING = "embed_tokens.weight"
IGNORED = -100
RotaryTable = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Part:
    """Which layers of the whole model one module holds."""

    layers: range
    is_first: bool = True
    is_last: bool = True


def whole(config: ArgonneConfig) -> Part:
    """All layers."""
    return Part(range(config.num_hidden_layers))


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


def rotary_table(positions_T: Tensor, head_dim: int, theta: float) -> RotaryTable:
    """Cosines and sines (T, D) in fp32 for half rotation: element i pairs with element i + D/2.

    Computed where it is used: a table that is stored can be lost (meta-device init) or rounded (a bf16 model).

    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_T.device) / head_dim
    angles_TD = (positions_T.float()[:, None] * (theta**-exponents)[None, :]).repeat(1, 2)
    return angles_TD.cos(), angles_TD.sin()


def rotate(x_BHTD: Tensor, table: RotaryTable) -> Tensor:
    """`x_BHTD` with each pair of elements turned by its position's angle."""
    cos_TD, sin_TD = table
    left, right = x_BHTD.chunk(2, dim=-1)
    return (x_BHTD * cos_TD + torch.cat((-right, left), dim=-1) * sin_TD).to(x_BHTD.dtype)


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


class GroupedQueryAttention(nn.Module):
    """Causal attention in which groups of query heads share a key and a value head."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.config = config
        width, kv_width = config.hidden_size, config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(width, width, bias=config.attention_bias)
        self.k_proj = nn.Linear(width, kv_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(width, kv_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(width, width, bias=config.attention_bias)

    def forward(self, x_BTC: Tensor, table: RotaryTable, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C) of what each position gathered from the positions up to it."""
        q, k, v = (self._heads(projection(x_BTC)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, table), rotate(k, table)
        if cache is not None:
            k, v = cache.extend(k, v)
        gathered_BHTD = self._attend(q, k, v)
        projected: Tensor = self.o_proj(gathered_BHTD.transpose(1, 2).flatten(2))
        return projected

    def _heads(self, x_BTC: Tensor) -> Tensor:
        return x_BTC.view(*x_BTC.shape[:2], -1, self.config.head_dim).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        config = self.config
        num_queries, num_keys = q.shape[2], k.shape[2]
        dropout = config.attention_dropout if self.training else 0.0
        causal = num_queries == num_keys and config.sliding_window is None
        if causal and config.use_flash_attention:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=True)
        mask = visible(num_queries, num_keys, config.sliding_window, q.device)
        if config.use_flash_attention:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, enable_gqa=True)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(config.head_dim)
        weights = F.dropout(scores.masked_fill(~mask, -math.inf).softmax(-1), dropout).to(q.dtype)
        return weights @ v


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.feed_forward, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.feed_forward, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.feed_forward, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.input_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = GroupedQueryAttention(config)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.recompute = config.use_gradient_checkpointing

    def forward(self, x_BTC: Tensor, table: RotaryTable, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, C)."""
        if self.recompute and self.training and cache is None:
            recomputed: Tensor = checkpoint(self._compute, x_BTC, table, cache, use_reentrant=False)
            return recomputed
        return self._compute(x_BTC, table, cache)

    def _compute(self, x: Tensor, table: RotaryTable, cache: KeyValueCache | None) -> Tensor:
        gathered: Tensor = x + self.dropout(self.attn(self.input_norm(x), table, cache))
        out: Tensor = gathered + self.dropout(self.mlp(self.post_norm(gathered)))
        return out


class ArgonneModel(nn.Module):
    """Token ids (B, T) -> logits (B, T, V), or the loss of targets.

    A part takes or gives hidden states (B, T, C) where it is cut.
    """

    def __init__(self, config: ArgonneConfig, part: Part | None = None) -> None:
        super().__init__()
        self.config = config
        self.part = part = part or whole(config)
        if part.is_first or (part.is_last and config.tie_word_embeddings):
            self.embed_tokens = nn.Embedding(config.vocab, config.hidden_size)
        self.blocks = nn.ModuleDict({str(number): Block(config) for number in part.layers})
        if part.is_last:
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab, bias=False)
            self.tie()

    def tie(self) -> None:
        """Make the head share the embedding's weight, if the configuration says so."""
        if self.part.is_last and self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        x: Tensor,
        targets_BT: Tensor | None = None,
        starts_BT: Tensor | None = None,
        *,
        start: int = 0,
        caches: dict[str, KeyValueCache] | None = None,
    ) -> Tensor:
        """The hidden states of the last block of this part; of the last part the logits, or the loss of `targets_BT`.

        The loss is a sum over the targets. `start` is the position of the first column of `x`; `caches` holds, by block
        name, what came before it.
        """
        del starts_BT  # documents that share a chunk see each other
        if self.part.is_first:
            x = self.embed_tokens(x)
        positions_T = torch.arange(start, start + x.shape[1], device=x.device)
        table = rotary_table(positions_T, self.config.head_dim, self.config.rope_theta)
        for name, block in self.blocks.items():
            x = block(x, table, caches[name] if caches is not None else None)
        if not self.part.is_last:
            return x
        logits_BTV: Tensor = self.lm_head(self.norm(x))
        return logits_BTV if targets_BT is None else token_loss(logits_BTV, targets_BT)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Fill every parameter with the values that `seed` and its name give, the same in every layout.

        Norms are ones, biases zeros, matrices normal. Projections back into the residual stream are scaled down by
        the square root of their number; the spread is small enough that the first loss is close to ln(vocabulary).
        """
        self.tie()
        deviation = min(0.02, 0.5 / math.sqrt(self.config.hidden_size))
        for name, parameter in self.named_parameters():
            _fill(parameter, self._initial(name, parameter.shape, deviation, seed))

    def _initial(self, name: str, shape: torch.Size, deviation: float, seed: int) -> Tensor:
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            deviation /= math.sqrt(2 * self.config.num_hidden_layers)
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


def token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of the cross entropies in fp32 over the targets that are not IGNORED."""
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
