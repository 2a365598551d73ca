"""The model that is compared, written as one would without thinking of speed, and a loop of the fewest lines over it.

`python -m tests.benchmarks.plain_llama` is that loop behind the gate. Nothing of `train` is used, so that what is done
to our model does not help it.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.benchmarks.peer_gate import (
    DIM,
    FEED_FORWARD,
    HEADS,
    LAYERS,
    LEARNING_RATE,
    LENGTH,
    MAX_GRAD_NORM,
    VOCAB,
    Gate,
    some_sequences,
)


class PlainBlock(nn.Module):
    """Rotary attention and SwiGLU, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second_norm = nn.RMSNorm(DIM, 1e-6), nn.RMSNorm(DIM, 1e-6)
        self.q, self.k, self.v, self.o = (nn.Linear(DIM, DIM, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(DIM, FEED_FORWARD, bias=False) for _ in range(2))
        self.down = nn.Linear(FEED_FORWARD, DIM, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(attended.transpose(1, 2).flatten(2))
        normed = self.second_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class PlainLlama(nn.Module):
    """Ids (B, T) -> logits (B, T, V)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(PlainBlock() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, 1e-6)
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        rates = 10000.0 ** -(torch.arange(0, DIM // HEADS, 2) / (DIM // HEADS))
        angles = (torch.arange(LENGTH)[:, None] * rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.apply(_initialize)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)


def main() -> None:
    """Full logits, cross entropy, clipping, fused AdamW, eagerly."""
    gate, model, ids = Gate(), PlainLlama(), some_sequences()
    gate.check(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    while True:
        gate.wait()
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        print(f"loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
