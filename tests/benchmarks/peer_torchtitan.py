"""torchtitan's own parts behind the gate; with `trainer` as an argument its trainer, which shows why it cannot.

Its trainer wants an accelerator, and the attention of its language models (flex, varlen) has no backward pass on a CPU.
So this is a loop of our own over its Llama 3 with its SDPA module, its compilation of each block, its compiled loss in
chunks and fused AdamW: what its trainer would do on one rank.
"""

import os
import sys
import tempfile

import torch

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


def build_model():
    """Its Llama 3 in the size that all have, with the attention and the rotation of its that suit a CPU."""
    from torchtitan.models import llama3
    from torchtitan.models.common import CosSinRoPE
    from torchtitan.models.common.attention import ScaledDotProductAttention

    config = llama3._debugmodel("flex")
    rope = CosSinRoPE.Config(dim=DIM // HEADS, max_seq_len=LENGTH)
    sizes = {"n_layers": LAYERS, "dim": DIM, "n_heads": HEADS, "hidden_dim": FEED_FORWARD}
    layers = llama3._build_llama3_layers(**sizes, rope=rope, attn_backend="flex")
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config.dim, config.vocab_size, config.layers = DIM, VOCAB, layers
    config.tok_embeddings.num_embeddings, config.tok_embeddings.embedding_dim = VOCAB, DIM
    config.norm.normalized_shape = DIM
    config.lm_head.in_features, config.lm_head.out_features = DIM, VOCAB
    model = config.build()
    model.init_weights()
    return model


def main() -> None:
    """Train until the driver has had enough."""
    from torchtitan.components.loss import ChunkedLossWrapper
    from torchtitan.config import CompileConfig

    gate, model, ids = Gate(), build_model(), some_sequences()
    gate.check(model)
    for block in model.layers.values():
        block.compile(backend="inductor", fullgraph=True)
    loss_in_chunks = ChunkedLossWrapper.Config().build(compile_config=CompileConfig(enable=True))
    loss_in_chunks.set_lm_head(model.lm_head)
    model._skip_lm_head = True
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    while True:
        gate.wait()
        optimizer.zero_grad()
        num_targets = (targets != -100).sum()
        loss, _ = loss_in_chunks(model(inputs), targets, num_targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM, foreach=True)
        optimizer.step()
        print(f"loss {loss.item():.4f}", flush=True)


def run_trainer() -> None:
    """Two steps of its debug model by its own trainer."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    from torchtitan.train import main as train

    with tempfile.TemporaryDirectory() as out:
        settings = ("--training.steps", "2", "--dump-folder", out)
        sys.argv[1:] = ["--module", "llama3", "--config", "llama3_debugmodel", *settings]
        train()


if __name__ == "__main__":
    run_trainer() if sys.argv[1:] == ["trainer"] else main()
