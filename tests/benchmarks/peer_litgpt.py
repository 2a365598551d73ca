"""litgpt's pretraining behind the gate: its main, with its loop, model, loss and torch.compile, on its defaults."""

import tempfile
from pathlib import Path

import lightning
from litgpt import pretrain
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from torch.utils.data import DataLoader, IterableDataset

from tests.benchmarks.peer_gate import (
    BATCH,
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


class Sequences(IterableDataset):
    """Sequences without end; stops where the loop asks for the next batch."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._ids = gate, some_sequences()

    def __iter__(self):
        while True:
            self._gate.wait()
            yield from self._ids


class Data:
    """What its main asks of a data module."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def connect(self, **_) -> None: ...

    def prepare_data(self) -> None: ...

    def setup(self) -> None: ...

    def train_dataloader(self):
        return DataLoader(Sequences(self._gate), batch_size=BATCH)

    def val_dataloader(self):
        return DataLoader(some_sequences(), batch_size=BATCH)


def main() -> None:
    """Its defaults, but for what all have in common."""
    gate = Gate()
    config = Config(
        name="compared",
        block_size=LENGTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_embd=DIM,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
        intermediate_size=FEED_FORWARD,
    )
    gate.check(pretrain.GPT(config))
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="32-true")
    sizes = {"global_batch_size": BATCH, "micro_batch_size": BATCH, "max_seq_length": LENGTH}
    limits = {"max_tokens": 10**12, "max_norm": MAX_GRAD_NORM, "save_interval": None}
    rates = {"class_path": "torch.optim.AdamW", "init_args": {"lr": LEARNING_RATE, "betas": (0.9, 0.95)}}
    with tempfile.TemporaryDirectory() as out:
        pretrain.main(
            fabric=fabric,
            devices=1,
            seed=0,
            initial_checkpoint_dir=None,
            resume=False,
            config=config,
            data=Data(gate),
            out_dir=Path(out),
            tokenizer_dir=None,
            tokenizer=None,
            train=TrainArgs(**sizes, **limits, lr_warmup_steps=2),
            eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False),
            optimizer=rates,
        )


if __name__ == "__main__":
    main()
