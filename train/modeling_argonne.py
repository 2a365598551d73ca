"""Argonne 1.x for `transformers`, under the names that it had; this file needs nothing but torch and transformers.

An exported 1.x model has a copy of it in its folder, which `trust_remote_code=True` runs. As in 1.x nobody shifts
labels: they are the ids that come next.

Legend: B sequences, T positions, S positions with those before, C n_embd, H heads, D width of a head, V vocab_size.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

IGNORED = -100
"""A label that is not learned from."""


class ArgonneConfig(PretrainedConfig):  # type: ignore[misc]  # transformers has no types
    """The architecture of a 1.x model."""

    model_type = "argonne"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
    }

    def __init__(
        self,
        vocab_size: int = 12000,
        block_size: int = 2048,
        n_layer: int = 24,
        n_head: int = 24,
        n_embd: int = 1296,
        dropout: float = 0.1,
        **more: Any,
    ) -> None:
        self.vocab_size, self.block_size, self.dropout = vocab_size, block_size, dropout
        self.n_layer, self.n_head, self.n_embd = n_layer, n_head, n_embd
        super().__init__(**{"tie_word_embeddings": False, **more})


class CausalSelfAttention(nn.Module):
    """Every head has its own keys and values."""

    def __init__(self, config: ArgonneConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_heads, self.dropout = layer, config.n_head, config.dropout
        self.query, self.key = nn.Linear(config.n_embd, config.n_embd), nn.Linear(config.n_embd, config.n_embd)
        self.value, self.proj = nn.Linear(config.n_embd, config.n_embd), nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x_BTC: Tensor, seen_BHTS: Tensor, cache: Any) -> Tensor:
        """(B, T, C) of what each position gathered from those that it sees."""
        q, k, v = (
            m(x_BTC).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for m in (self.query, self.key, self.value)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        dropout = self.dropout if self.training else 0.0
        gathered_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BHTS, dropout_p=dropout)
        out: Tensor = self.proj(gathered_BHTD.transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.fc2 = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        return self.fc2(self.dropout(F.gelu(self.fc1(x))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ArgonneConfig, layer: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attn, self.mlp = CausalSelfAttention(config, layer), MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor, seen_BHTS: Tensor, cache: Any) -> Tensor:
        """Same shape as `x_BTC`."""
        x = x_BTC + self.dropout(self.attn(self.ln1(x_BTC), seen_BHTS, cache))
        out: Tensor = x + self.dropout(self.mlp(self.ln2(x)))
        return out


class ArgonneModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Token ids (B, T) -> logits (B, T, V), and the loss of labels that nobody shifts."""

    config_class = ArgonneConfig
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _supports_sdpa = True

    def __init__(self, config: ArgonneConfig) -> None:
        super().__init__(config)
        self.position_embedding = nn.Parameter(torch.zeros(1, config.block_size, config.n_embd))
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Of tokens."""
        return self.token_embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        """`attention_mask` (B, S) is 0 where nothing is to be seen.

        Raises: ValueError for more positions than the model has, or labels that are the inputs themselves.
        """
        del more  # how transformers would have its own models compute
        if labels is not None and bool(((labels == input_ids) | (labels == IGNORED)).all()):
            raise ValueError("the labels are the inputs: Argonne 1.x does not shift them, give the ids that come next")
        start = 0 if past_key_values is None else past_key_values.get_seq_length()
        end = start + input_ids.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} positions are given, the model has {self.config.block_size}")
        places_T = torch.arange(start, end, device=input_ids.device)
        x = self.token_embedding(input_ids)
        x = self.dropout(x + self.position_embedding[0, places_T if position_ids is None else position_ids])
        seen = _seen(places_T, attention_mask)
        for block in self.blocks:
            x = block(x, seen, past_key_values)
        logits_BTV = self.head(self.ln_f(x))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=past_key_values)


def _seen(places_T: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B or 1, 1, T, S): itself and what comes before it, but for padding."""
    keys_S = torch.arange(int(places_T[-1]) + 1, device=places_T.device)
    is_itself, is_before = keys_S == places_T[:, None], keys_S < places_T[:, None]
    if attention_mask is None:
        return (is_itself | is_before)[None, None]
    return (is_itself | (is_before & attention_mask.bool()[:, None, :]))[:, None]


AutoConfig.register("argonne", ArgonneConfig, exist_ok=True)
AutoModelForCausalLM.register(ArgonneConfig, ArgonneModel, exist_ok=True)
