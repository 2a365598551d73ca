"""A compiled model computes what it computes uncompiled, under the same names, or says that it does not compile."""

import json

import pytest
import torch
from torch._dynamo.utils import counters

from tests.helpers import run_cli
from tests.train_helpers import random_tokens, recipe, some_ids, write_tokens
from train.building import build_model
from train.strategy import evaluating


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """Nothing compiled before counts, in memory or on the disk; what compiling sets is put back."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        yield
    torch._functorch.config.donated_buffer = True
    torch._dynamo.reset()


def built(compiled, **changes):
    model = build_model(recipe(training__compile=compiled, model__num_hidden_layers=3, **changes))
    model.to_empty(device="cpu")
    model.initialize(0)
    return model


def learned(model, ids, targets, starts_BT=None):
    """The loss and all gradients."""
    model.zero_grad()
    loss = model(ids, targets, starts_BT)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param(  # by flash.cpp
            {"model__hidden_size": 32, "model__num_attention_heads": 2, "model__num_key_value_heads": 1},
            marks=pytest.mark.long,
        ),
        pytest.param({"training__activation_checkpointing": "selective"}, marks=pytest.mark.long),
        pytest.param({"training__activation_checkpointing": "full"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_it_learns_the_same_by_one_graph_for_all_blocks_that_are_alike(changes):
    starts_BT = torch.tensor([[0] * 5 + [5] * 7, [0] * 12], dtype=torch.int32)
    plain, compiled = (built(is_compiled, data__document_mask=True, **changes) for is_compiled in (False, True))
    for starts, graphs in ((None, 1), (starts_BT, 2)):
        ours, theirs = (learned(model, some_ids(), some_ids(seed=1), starts) for model in (compiled, plain))
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)
        assert counters["stats"]["unique_graphs"] == graphs
    assert sum(counters["graph_break"].values()) == 0
    assert compiled.compilation.failure is None
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_more_shapes_than_may_be_compiled_are_told(monkeypatch):
    """torch alone would go on uncompiled and not say so."""
    monkeypatch.setattr("train.compilation.SHAPES", 1)
    model, reasons = built(True), []
    model.compilation.report = reasons.append
    for size, told in ((1, 0), (1, 0), (2, 1)):
        with evaluating(model):
            model(some_ids(size), some_ids(size, seed=1))
        assert len(reasons) == told


@torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")})  # monkeypatch would not put it back
def test_what_cannot_be_compiled_runs_as_it_is_and_is_told_once():
    plain, compiled = built(False), built(True)
    reasons = []
    compiled.compilation.report = reasons.append
    for _ in range(2):
        ours, theirs = (learned(model, some_ids(), some_ids(seed=1)) for model in (compiled, plain))
        assert all(torch.equal(one, two) for one, two in zip(ours, theirs, strict=True))
    assert len(reasons) == 1
    assert compiled.compilation.failure == reasons[0]
    assert "ompiler" in reasons[0]


@pytest.mark.slow
def test_a_run_without_a_compiler_trains_and_records_it(tmp_path):
    write_tokens(tmp_path / "tokens", [random_tokens(400)], vocab_size=64)
    (tmp_path / "small.toml").write_text(
        "[model]\nhidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 4\nmax_position_embeddings = 64\n"
        "[data]\nsequence_length = 16\nglobal_batch = 4\n"
        "[optimizer]\nwarmup_steps = 1\n[training]\ntotal_steps = 2\ncompile = true\n"
    )
    arguments = ["run", tmp_path / "tokens", tmp_path / "run", "--recipe", tmp_path / "small.toml", "--nproc", "1"]
    completed = run_cli("train", *arguments, CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert completed.returncode == 0, completed.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "eager"]
    assert "ompiler" in event["reason"]
    assert "eager: rank 0, reason" in completed.stdout
