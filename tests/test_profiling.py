"""A trace and a snapshot are one option each."""

import json

import pytest
import torch

from shared.errors import ConfigError
from tests.helpers import run_cli
from tests.train_helpers import random_tokens, write_tokens
from train.profiling import SKIPPED_STEPS, check_profiling

ARGUMENTS = (
    "--nproc 1 --model.hidden-size 32 --model.num-hidden-layers 1 --model.num-attention-heads 4 "
    "--data.sequence-length 16 --data.global-batch 4 --data.validation-chunks 0 "
    "--training.total-steps 5 --training.microbatch 4"
)


def test_the_steps_asked_for_are_traced(tmp_path):
    write_tokens(tmp_path / "tokens", [random_tokens(800)], vocab_size=64)
    arguments = ["run", str(tmp_path / "tokens"), str(tmp_path / "run"), "--profile", "2", *ARGUMENTS.split()]
    completed = run_cli("train", *arguments)
    assert completed.returncode == 0, completed.stderr
    events = json.loads((tmp_path / "run" / "profile-rank0.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{SKIPPED_STEPS}", f"ProfilerStep#{SKIPPED_STEPS + 1}"}
    assert sum(event["name"].startswith("Optimizer.step") for event in events) == 2
    assert any(event["name"] == "[memory]" for event in events)


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="profile 0 is too small: at least 1 is wanted"):
        check_profiling(0, memory_snapshot=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_snapshot_of_a_cpu_is_refused():
    with pytest.raises(ConfigError, match=r"memory-snapshot needs a GPU .*, this is a CPU: use --profile, whose trace"):
        check_profiling(None, memory_snapshot=True)
