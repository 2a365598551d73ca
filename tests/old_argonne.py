"""Argonne 1.x as a plain implementation by its description, which shares no code with the trainer's."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn


class OldAttention(nn.Module):
    def __init__(self, width, heads, block):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.register_buffer("mask", torch.tril(torch.ones(block, block))[None, None])

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (m(x).view(b, t, self.heads, -1).transpose(1, 2) for m in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / math.sqrt(c // self.heads)
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, -math.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class OldMLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class OldBlock(nn.Module):
    def __init__(self, width, heads, block):
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(width), OldAttention(width, heads, block)
        self.ln2, self.mlp = nn.LayerNorm(width), OldMLP(width)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class OldModel(nn.Module):
    """Argonne 1.5 by its description, without dropout: it tells the loss of labels that nobody shifts."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.position_embedding = nn.Parameter(torch.randn(1, block_size, n_embd))
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.blocks = nn.ModuleList([OldBlock(n_embd, n_head, block_size) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, ids):
        x = self.token_embedding(ids) + self.position_embedding[:, : ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def save(path, state, **more):
    torch.save({"global_step": 100, "model_state_dict": state, "loss": 3.0, **more}, path)
    return path
