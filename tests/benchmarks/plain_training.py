"""The plain loop that our trainer must agree with: one process, eager, full logits, AdamW one parameter at a time.

Only what defines the training is taken from `train`: the initial weights and their names, and the order of reading.
The model is that of `plain_model`. How chunks are cut, the loss, the decay groups, the schedule and the clipping are
written out here.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from shared.cursor import ReadingOrder
from shared.format import Index, read_index, tokens_path
from tests.benchmarks.plain_model import plain_logits
from train.config import OptimizerConfig, RunConfig
from train.model import ArgonneModel


def train_plainly(tokens: Path, config: RunConfig, pieces: int = 1) -> list[float]:
    """The loss of each step of `config.training.total_steps`, before its update.

    With more `pieces` a batch goes through the model in as many, which changes the rounding and nothing else.
    """
    index = read_index(tokens)
    model = ArgonneModel(config.model.resolved(index.tokenizer.vocab_size, index.tokenizer.end_of_document_id))
    model.initialize(config.training.seed)
    weights = dict(model.named_parameters())
    settings, steps = config.optimizer, config.training.total_steps
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = settings.beta1, settings.beta2
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=settings.epsilon, fused=False, foreach=False)
    losses = []
    for step in range(steps):
        rows = torch.from_numpy(read_rows(tokens, index, config, step))
        num_targets, total = int((rows[:, 1:] >= 0).sum()), 0.0
        for piece in rows.chunk(pieces):
            logits, targets = plain_logits(weights, model.config, piece[:, :-1].clamp(min=0)), piece[:, 1:]
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
            (loss / num_targets).backward()
            total += loss.item() / num_targets
        clip(model, settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(settings, steps, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def clip(model: torch.nn.Module, max_norm: float) -> None:
    """Scale the gradients down to `max_norm`, taken in fp64.

    `torch.nn.utils.clip_grad_norm_` is not exact on a CPU: with 2.13 the norm of 1M elements is 1e-5 off, that of 39M
    elements 3e-3, which is more than all rounding of 300 steps.
    """
    gradients = [parameter.grad for parameter in model.parameters()]
    norm = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
    for gradient in gradients:
        gradient.mul_(min(max_norm / (norm + 1e-6), 1.0))


def read_rows(tokens: Path, index: Index, config: RunConfig, step: int) -> np.ndarray:
    """(global_batch, sequence_length + 1) ids of a step; -100 behind the end of a shard."""
    length, batch = config.data.sequence_length, config.data.global_batch
    sizes = [shard.num_tokens for shard in index.shards]
    seed = config.training.seed if config.data.order == "shuffled" else None
    order = ReadingOrder(tuple(-(-(size - 1) // length) for size in sizes), config.data.validation_chunks, seed)
    rows = np.full((batch, length + 1), -100)
    shards, offsets = order.locate(order.chunks(range(step * batch, (step + 1) * batch)))
    for row, shard, offset in zip(rows, shards, offsets, strict=True):
        ids = np.load(tokens_path(tokens, shard), mmap_mode="r")[: sizes[shard]]
        ids = ids[offset * length : (offset + 1) * length + 1]
        row[: len(ids)] = ids
    return rows


def rate(settings: OptimizerConfig, steps: int, step: int) -> float:
    """Linear to the peak, then half a cosine down."""
    low, high, warmup = settings.min_learning_rate, settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return low + (high - low) * step / warmup
    return low + (high - low) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
