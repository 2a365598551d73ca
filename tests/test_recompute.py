"""Activation checkpointing keeps less and changes nothing."""

from itertools import pairwise

import pytest
import torch

from shared.errors import ConfigError
from tests.train_helpers import recipe, some_ids
from train.building import build_model

MODES = ["none", "selective", "full"]


def model_of(mode, stride=1, **changes):
    config = recipe(
        training__activation_checkpointing=mode,
        training__checkpoint_stride=stride,
        model__num_hidden_layers=4,
        **changes,
    )
    model = build_model(config)
    model.to_empty(device="cpu")
    model.initialize(0)
    return model


def peak_bytes(model):
    """The most that forward and backward pass hold at once, as the profiler counts it."""
    ids, targets = some_ids(8, 64), some_ids(8, 64, seed=1)
    with torch.profiler.profile(profile_memory=True) as trace:
        model(ids, targets).backward()
    total = peak = 0
    events = trace.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


def test_each_mode_keeps_less_than_the_one_before():
    kept = [peak_bytes(model_of(mode)) for mode in MODES]
    assert all(more > 1.1 * less for more, less in pairwise(kept)), kept


@pytest.mark.parametrize("mode", MODES[1:])
def test_a_longer_stride_keeps_more(mode):
    kept = [peak_bytes(model_of(mode, stride)) for stride in (5, 2, 1)]
    assert all(more > less for more, less in pairwise(kept)), kept


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("changes", [{}, {"model__hidden_dropout": 0.3}, {"model__sliding_window": 4}], ids=str)
def test_gradients_are_equal(mode, changes):
    found = []
    for chosen in ("none", mode):
        model = model_of(chosen, **changes).train()
        torch.manual_seed(7)
        model(some_ids(), some_ids(seed=1)).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_nothing_is_recomputed_in_evaluation():
    calls = []
    model = model_of("full").eval()
    model.blocks["0"].attn.register_forward_hook(lambda *_: calls.append(1))
    model(some_ids(), some_ids(seed=1)).backward()
    assert len(calls) == 1


def test_the_option_that_it_replaces_is_told():
    with pytest.raises(
        ConfigError, match=r"use_gradient_checkpointing is no part of the architecture: set training.act"
    ):
        recipe_with_old_name()


def recipe_with_old_name():
    from train.architecture import ArgonneConfig

    return ArgonneConfig(use_gradient_checkpointing=True)
