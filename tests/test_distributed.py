"""Every layout trains the same model on the same data, and continues from every other layout's checkpoint."""

import json
import shutil
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from shared.config import unstructure
from shared.format import read_index
from tests.helpers import on_ranks
from train.architecture import ArgonneConfig
from train.config import (
    CheckpointConfig,
    DataConfig,
    FullyShardedConfig,
    OptimizerConfig,
    PipelineConfig,
    RunConfig,
    TrainingConfig,
)
from train.data import ChunkReader
from train.model import ArgonneModel
from train.records import read_metrics
from train.schedule import learning_rate
from train.views import open_view

pytestmark = pytest.mark.slow
STEPS = 10
SAVED_STEP = 5


@dataclass(frozen=True)
class Layout:
    name: str
    num_processes: int
    strategy: str
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    fsdp: FullyShardedConfig = field(default_factory=FullyShardedConfig)


PLAIN = [
    Layout("fsdp1", 1, "fsdp"),
    Layout("fsdp2", 2, "fsdp"),
    Layout("pipeline1", 1, "pipeline"),
    Layout("pipeline2", 2, "pipeline"),
    Layout("pipeline4", 4, "pipeline"),
    Layout("pipeline2x2", 4, "pipeline", PipelineConfig(2)),
]
OTHERS = [
    Layout("interleaved2", 2, "pipeline", PipelineConfig(schedule="interleaved-1f1b")),
    Layout("zero-bubble2", 2, "pipeline", PipelineConfig(schedule="zero-bubble")),
    Layout("zero-bubble2-parts", 2, "pipeline", PipelineConfig(schedule="zero-bubble", stages_per_rank=2)),
    Layout("sharded2x2", 4, "pipeline", PipelineConfig(2, data_parallel="sharded")),
    Layout("sharded-zero-bubble2x2", 4, "pipeline", PipelineConfig(2, "zero-bubble", data_parallel="sharded")),
    Layout("hybrid2x2", 4, "fsdp", fsdp=FullyShardedConfig(shard_size=2, reshard_after_forward=False)),
]
LAYOUTS = [*PLAIN, *OTHERS]
NAMES = [layout.name for layout in LAYOUTS]
FSDP2 = PLAIN[1]
TIED = {"tied": True, "untied": False}
CHANGES = [(FSDP2, layout, head) for layout, head in product(LAYOUTS, TIED) if layout != FSDP2]
CHANGES += [(layout, FSDP2, "tied") for layout in LAYOUTS if layout != FSDP2]
MORE_CHANGES = [change for change in product(PLAIN, PLAIN, TIED) if change[0] != change[1] and change not in CHANGES]
"""From one layout to another: every one from and to FSDP on two ranks; for the long tests each plain one to each."""


def recipe(tied: bool) -> RunConfig:
    return RunConfig(
        model=ArgonneConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        ),
        data=DataConfig(sequence_length=48, global_batch=8, validation_chunks=8),
        optimizer=OptimizerConfig(learning_rate=1e-3, min_learning_rate=1e-4, warmup_steps=3, max_grad_norm=0.5),
        training=TrainingConfig(total_steps=STEPS, microbatch=1, seed=7, validate_every=5),
        checkpoint=CheckpointConfig(every=SAVED_STEP, keep=9),
    )


def job(config: RunConfig, layout: Layout, tokens: Path, run: Path, stop_step: int | None = None) -> dict:
    config = replace(config, strategy=layout.strategy, pipeline=layout.pipeline, fsdp=layout.fsdp)
    return {"config": unstructure(config), "tokens": str(tokens), "run": str(run), "stop_step": stop_step}


def carry_out(num_processes: int, jobs: list[dict], directory: Path) -> None:
    """Run the jobs on real processes; their outcome is in their run directories."""
    path = directory / "jobs.json"
    path.write_text(json.dumps(jobs))
    on_ranks(num_processes, "tests.distributed_worker", path)


@pytest.fixture(scope="module")
def runs(small_tokens, tmp_path_factory) -> Path:
    """A finished run of STEPS steps for every layout, tied and untied, with a checkpoint at SAVED_STEP."""
    directory = tmp_path_factory.mktemp("runs")
    for size in (1, 2, 4):
        jobs = [
            job(recipe(TIED[head]), layout, small_tokens, directory / f"{layout.name}-{head}")
            for layout, head in product(LAYOUTS, TIED)
            if layout.num_processes == size
        ]
        carry_out(size, jobs, directory)
    return directory


@pytest.fixture(scope="module")
def continued(runs, small_tokens, tmp_path_factory) -> Path:
    """For each of CHANGES, a run that `go_on` left."""
    directory = tmp_path_factory.mktemp("continued")
    go_on(CHANGES, runs, small_tokens, directory)
    return directory


@pytest.fixture(scope="module")
def continued_more(runs, small_tokens, tmp_path_factory) -> Path:
    """The same for MORE_CHANGES."""
    directory = tmp_path_factory.mktemp("continued-more")
    go_on(MORE_CHANGES, runs, small_tokens, directory)
    return directory


def go_on(changes: list[tuple], runs: Path, tokens: Path, directory: Path) -> None:
    """For each change, one step under its second layout from the checkpoint that the first left at SAVED_STEP."""
    for size in (1, 2, 4):
        jobs = []
        for before, after, head in changes:
            if after.num_processes == size:
                run = directory / f"{before.name}-{after.name}-{head}"
                shutil.copytree(runs / f"{before.name}-{head}", run)
                shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
                jobs.append(job(recipe(TIED[head]), after, tokens, run, SAVED_STEP + 1))
        carry_out(size, jobs, directory)


@pytest.fixture(scope="module")
def plain(small_tokens) -> dict[str, list[dict]]:
    """What a plain loop on one process gives: no strategy, no microbatches, norms in double precision."""
    return {head: plain_loop(small_tokens, recipe(tied)) for head, tied in TIED.items()}


def plain_loop(tokens: Path, config: RunConfig) -> list[dict]:
    index = read_index(tokens)
    model_config = config.model.resolved(index.tokenizer.vocab_size, index.tokenizer.end_of_document_id)
    model = ArgonneModel(model_config)
    model.initialize(config.training.seed)
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": options.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(options.beta1, options.beta2),
        foreach=False,
        fused=False,
    )
    reader = ChunkReader(open_view(tokens, index, config), config, 0, 1, torch.device("cpu"))
    records = []
    for step in range(config.total_steps):
        batch, _ = reader.fetch(step * config.data.global_batch)
        loss = F.cross_entropy(model(batch.inputs_BT).flatten(0, 1), batch.targets_BT.flatten())
        loss.backward()
        norm = torch.stack([p.grad.double().square().sum() for p in model.parameters()]).sum().sqrt()
        if norm > options.max_grad_norm:
            for parameter in model.parameters():
                parameter.grad *= options.max_grad_norm / norm
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(options, config.total_steps, step)
        optimizer.step()
        optimizer.zero_grad()
        records.append({"loss": loss.item(), "grad_norm": norm.item()})
    reader.close()
    return records


@pytest.mark.parametrize("head", TIED)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(900)
def test_a_layout_gives_the_losses_and_gradient_norms_of_one_plain_process(name, head, runs, plain):
    records = read_metrics(runs / f"{name}-{head}")
    assert len(records) == STEPS
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in records] == pytest.approx([r[key] for r in plain[head]], rel=1e-5)


@pytest.mark.parametrize("head", TIED)
def test_every_layout_sees_the_same_data_and_validates_alike(head, runs):
    every = [read_metrics(runs / f"{name}-{head}") for name in NAMES]
    assert len({tuple(r["data_digest"] for r in records) for records in every}) == 1
    for step in (SAVED_STEP - 1, STEPS - 1):
        losses = [records[step]["validation_loss"] for records in every]
        assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-5)


@pytest.mark.parametrize(("before", "after", "head"), [(b.name, a.name, head) for b, a, head in CHANGES])
@pytest.mark.timeout(900)
def test_a_checkpoint_of_each_layout_continues_under_each_other(before, after, head, continued, plain, runs):
    check_continued(before, after, head, continued, plain, runs)


@pytest.mark.long
@pytest.mark.parametrize(("before", "after", "head"), [(b.name, a.name, head) for b, a, head in MORE_CHANGES])
@pytest.mark.timeout(1800)
def test_a_checkpoint_of_each_plain_layout_continues_under_each_other(before, after, head, continued_more, plain, runs):
    check_continued(before, after, head, continued_more, plain, runs)


def check_continued(before, after, head, continued, plain, runs):
    record = read_metrics(continued / f"{before}-{after}-{head}")[SAVED_STEP]
    assert record["step"] == SAVED_STEP + 1
    for key in ("loss", "grad_norm"):
        assert record[key] == pytest.approx(plain[head][SAVED_STEP][key], rel=1e-5)
    straight = read_metrics(runs / f"{after}-{head}")[SAVED_STEP]
    for key in ("tokens", "epoch", "shard", "offset", "data_digest", "lr"):
        assert record[key] == straight[key]
