"""A checkpoint of Argonne 1.5 goes on here as it would have gone on there, step by step, by real commands."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from shared.format import open_documents, open_tokens, read_index
from tests.helpers import REPOSITORY, run_cli
from tests.old_argonne import OldModel, save

LENGTH, BATCH, RATE = 64, 8, 1e-3
REAL_TEXT = REPOSITORY.parent / "shared/data/CC-MAIN-2025-26/002_9.parquet"
HOW = [
    *("--data.sequence-length", LENGTH, "--data.global-batch", BATCH, "--data.order", "natural"),
    *("--training.microbatch", 2, "--optimizer.learning-rate", RATE, "--optimizer.warmup-steps", 0),
    *("--optimizer.schedule", "constant", "--optimizer.weight-decay", 0, "--optimizer.max-grad-norm", 1e9),
    *("--optimizer.beta2", 0.999, "--checkpoint.every", "None"),
]
STILL = ("--model.attention-dropout", 0, "--model.hidden-dropout", 0)


class PlainRun:
    """Argonne 1.5 as its scripts trained it, on the ids of a shard in order."""

    def __init__(self, tokens):
        torch.manual_seed(0)
        self.model = OldModel(vocab_size=2048, block_size=LENGTH, n_layer=3, n_head=4, n_embd=36)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0)
        self.ids = torch.tensor(open_tokens(tokens, read_index(tokens), 0).astype(np.int64))

    def step(self, chunk):
        """The loss of the global batch that begins with a chunk, before it is learned from."""
        rows = self.ids[chunk * LENGTH : (chunk + BATCH) * LENGTH + 1]
        loss = F.cross_entropy(self.model(rows[:-1].view(BATCH, LENGTH)).flatten(0, 1), rows[1:])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def goes_on(tokens, directory, num_before, num_after, strategies):
    """The losses before, those of the plain run after, and those of the run that was made of its checkpoint."""
    old = PlainRun(tokens)
    before = [old.step(number * BATCH) for number in range(num_before)]
    starts = open_documents(tokens, read_index(tokens), 0)
    row = int(np.searchsorted(starts, num_before * BATCH * LENGTH))
    position = {"current_file_idx": 0, "position_in_file": row, "files_processed": []}
    state = {"optimizer_state_dict": old.optimizer.state_dict(), "data_position": position}
    path = save(directory / "old.pth", old.model.state_dict(), **state, global_step=num_before)
    told = ("--heads", 4, "--tokens", tokens, "--training.total-steps", num_before + num_after)
    run = directory / "run"
    done = run_cli("train", "import", path, run, *told, *HOW)
    assert done.returncode == 0, done.stderr
    assert "optimizer state: that of all 53 parameters" in done.stdout
    assert f"data position: it goes on at row {row:,} of " in done.stdout
    assert done.stderr == ""
    for number, strategy in enumerate(strategies, start=1):
        stop = num_before + num_after * number // len(strategies)
        command = ("train", "run", tokens, run, "--recipe", run / "recipe.toml", "--nproc", 2, "--stop-step", stop)
        done = run_cli(*command, "--strategy", strategy, *STILL)
        assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(num_before + 1, num_before + num_after + 1))
    first = int(starts[row]) // LENGTH
    plain = [old.step(first + number * BATCH) for number in range(num_after)]
    return before, plain, [record["loss"] for record in records]


@pytest.mark.slow
def test_a_checkpoint_of_1_5_goes_on_as_the_plain_model_does(small_tokens, tmp_path):
    before, plain, ours = goes_on(small_tokens, tmp_path, 40, 20, ["pipeline"])
    np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=0)
    assert np.mean(ours) < np.mean(before[-20:])


@pytest.mark.long
def test_a_checkpoint_of_1_5_goes_on_for_100_steps_on_real_text_under_both_strategies(tmp_path):
    if not REAL_TEXT.exists():
        pytest.skip("needs ../shared/data/CC-MAIN-2025-26")
    settings = BuildSettings(LENGTH, "text", 100_000)
    build(str(REAL_TEXT), tmp_path / "tokens", settings, TokenizerSettings(vocab_size=2048))
    before, plain, ours = goes_on(tmp_path / "tokens", tmp_path, 100, 100, ["fsdp", "pipeline"])
    print(f"before {np.mean(before[-10:]):.3f}, after {np.mean(ours[:10]):.3f}, at the end {np.mean(ours[-10:]):.3f}")
    print(f"largest difference from the plain run {np.abs(np.subtract(ours, plain)).max():.2g}")
    np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=0)
    assert abs(np.mean(ours[:10]) - np.mean(before[-10:])) < 0.5
    assert np.mean(ours[-20:]) < np.mean(ours[:20])
