"""ArgonneModel: a decoder of pre-norm blocks with rotary attention, grouped key/value heads and SwiGLU.

A model may hold only a part of the layers (a pipeline stage). Blocks keep their number in the whole model as their
name, so a parameter has the same name in every layout.

Legend: B sequences, T positions, C hidden_size, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train.architecture import ArgonneConfig
from train.attention import GroupedQueryAttention, KeyValueCache, Scope, scope_of
from train.compilation import Compilation
from train.config import Recompute
from train.initialize import initialize
from train.layers import RMSNorm, RotaryTable, SwiGLU, rotary_table
from train.linear import Linear
from train.loss import LossTerms, cap, fused_loss
from train.recompute import recomputed

EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class Part:
    """Which layers of the whole model one module holds."""

    layers: range
    is_first: bool = True
    is_last: bool = True


def whole(config: ArgonneConfig) -> Part:
    """All layers."""
    return Part(range(config.num_hidden_layers))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.input_norm: nn.Module = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = GroupedQueryAttention(config)
        self.post_norm: nn.Module = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = SwiGLU(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.recompute: Recompute = "none"

    def forward(
        self, x_BTC: Tensor, table: RotaryTable | None, scope: Scope | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """(B, T, C)."""
        mode = self.recompute if self.training and cache is None else "none"
        return recomputed(mode, self._compute, x_BTC, table, scope, cache)

    def _compute(
        self, x: Tensor, table: RotaryTable | None, scope: Scope | None, cache: KeyValueCache | None
    ) -> Tensor:
        gathered: Tensor = x + self.dropout(self.attn(self.input_norm(x), table, scope, cache))
        out: Tensor = gathered + self.dropout(self.mlp(self.post_norm(gathered)))
        return out


class ArgonneModel(nn.Module):
    """Token ids (B, T) -> logits (B, T, V), or the loss of targets.

    A part takes or gives hidden states (B, T, C) where it is cut.
    """

    block_type: type[Block] = Block

    def __init__(self, config: ArgonneConfig, part: Part | None = None) -> None:
        super().__init__()
        self.config = config
        self.part = part = part or whole(config)
        self.document_mask, self.restart_positions = True, False  # what `starts_BT` does, if it is given
        self.z_loss = 0.0
        self.compilation: Compilation | None = None
        self.sequence_losses: list[Tensor] | None = None
        """Unless it is None, what each sequence added to the loss is put here, a tensor for each forward pass."""
        if part.is_first or (part.is_last and config.tie_word_embeddings):
            self.embed_tokens = nn.Embedding(config.vocab, config.hidden_size)
        self.blocks = nn.ModuleDict({str(number): self.block_type(config) for number in part.layers})
        if part.is_last:
            self.norm: nn.Module = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = Linear(config.hidden_size, config.vocab, bias=False)
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

        The loss is a sum over the targets, of next-token cross entropy alone. `starts_BT` are the first positions of
        the documents that positions are in; `start` is the position of the first column of `x`; `caches` holds, by
        block name, what came before it.
        """
        if self.part.is_first:
            x = self._embed(x, start, starts_BT)
        table = self._table(x, start, starts_BT)
        scope = scope_of(self.config, starts_BT if self.document_mask else None, x) if caches is None else None
        for name, block in self.blocks.items():
            x = block(x, table, scope, caches[name] if caches is not None else None)
        return self._end(x, targets_BT) if self.part.is_last else x

    def _embed(self, ids_BT: Tensor, start: int, starts_BT: Tensor | None) -> Tensor:
        """What the first block is given; where positions are, its attention knows."""
        del start, starts_BT
        x: Tensor = self.embed_tokens(ids_BT)
        return x

    def _table(self, x: Tensor, start: int, starts_BT: Tensor | None) -> RotaryTable | None:
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        if starts_BT is not None and self.restart_positions:
            positions = (positions - starts_BT)[:, None]
        return rotary_table(positions, self.config.head_dim, self.config.rope_theta)

    def _end(self, x: Tensor, targets_BT: Tensor | None) -> Tensor:
        """Logits, or the loss of `targets_BT`."""
        x = self.norm(x)
        if targets_BT is None:
            return cap(self.lm_head(x), self.config.logit_softcap)
        terms = LossTerms(self.config.logit_softcap, self.z_loss if self.training else 0.0)
        if self.sequence_losses is None or not self.training:
            return fused_loss(x, self.lm_head.weight, targets_BT, terms)
        each_BT = torch.zeros(targets_BT.shape, dtype=torch.float32, device=x.device)
        loss = fused_loss(x, self.lm_head.weight, targets_BT, terms, each_BT)
        self.sequence_losses.append(each_BT.sum(1))
        return loss

    def initialize(self, seed: int) -> None:
        """Fill every parameter with the values that `seed` and its name give, the same in every layout."""
        self.tie()
        initialize(self, self.config, seed)
