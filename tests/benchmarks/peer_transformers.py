"""transformers' LlamaForCausalLM under its Trainer, behind the gate; runs in an environment that has accelerate."""

import tempfile

from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

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


class Gated(TrainerCallback):
    """Stops where a step begins."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_step_begin(self, *_, **__) -> None:
        self._gate.wait()


class Sequences:
    """Sequences without end, as its data collator takes them; its model shifts the labels itself."""

    def __init__(self) -> None:
        self._ids = some_sequences()[:, :LENGTH]

    def __len__(self) -> int:
        return 1_000_000 * BATCH

    def __getitem__(self, number: int):
        ids = self._ids[number % BATCH]
        return {"input_ids": ids, "labels": ids}


def main() -> None:
    """Its defaults, but for what all have in common."""
    gate = Gate()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    gate.check(model)
    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            out,
            use_cpu=True,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            max_steps=1_000_000,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        Trainer(model, settings, train_dataset=Sequences(), callbacks=[Gated(gate)]).train()


if __name__ == "__main__":
    main()
