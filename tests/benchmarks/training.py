"""Optimizer steps of the fully sharded strategy on one rank, against a plain loop over the same model."""

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from tests.benchmarks.measure import Comparison, compare
from train.architecture import ArgonneConfig
from train.config import DataConfig, RunConfig, TrainingConfig
from train.data import Batch
from train.layout import flops_per_token, lay_out
from train.metrics import measured_peak_flops
from train.model import ArgonneModel
from train.optim import build_optimizer
from train.strategy import build_strategy

MODEL = ArgonneConfig(
    vocab_size=16384,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=6,
    intermediate_size=1024,
    tie_word_embeddings=False,
)
LENGTH, BATCH = 512, 4


def measure() -> tuple[Comparison, float]:
    """Tokens a second of a model of 23M parameters in fp32, and our share of the measured matrix product peak."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = RunConfig(MODEL, DataConfig(LENGTH, BATCH), training=TrainingConfig(microbatch=BATCH))
    device = torch.device("cpu")
    ids = torch.randint(0, MODEL.vocab, (BATCH, LENGTH + 1))
    batch = Batch(ids[:, :-1], ids[:, 1:], BATCH * LENGTH, np.zeros((BATCH, 16), np.uint8))
    strategy = build_strategy(config, lay_out(config, 1), device)
    optimizer = build_optimizer(config.optimizer, strategy.model)

    def ours() -> None:
        strategy.forward_backward(batch)
        strategy.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()

    model = ArgonneModel(MODEL)
    model.initialize(0)
    plain_optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def bare() -> None:
        F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        plain_optimizer.step()
        plain_optimizer.zero_grad()

    result = compare("train", "tokens/s", BATCH * LENGTH, ours, bare, rounds=4)
    peak = measured_peak_flops(device, torch.float32)
    dist.destroy_process_group()
    return result, result.ours * flops_per_token(MODEL, LENGTH) / peak
