"""Which microbatch is chosen, and what choosing it cannot change."""

import pytest
import torch

from shared.errors import ConfigError
from shared.storage import read_sealed
from tests.train_helpers import group_of_one, recipe
from train.findings import Findings, Trial
from train.layout import lay_out
from train.memory_errors import StepOutOfMemory
from train.microbatch import choose_microbatch, fastest, largest, layouts_to_try, try_in_turn
from train.strategy import build_strategy

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("global_batch", "world_size", "changes", "microbatches"),
    [
        (24, 1, {}, [1, 2, 3, 6, 12, 24]),  # 4 and 8 are too near to 3 and 6
        (24, 2, {}, [1, 2, 3, 6, 12]),
        (7, 1, {}, [1, 7]),
        (24, 2, {"strategy": "pipeline"}, [1, 2, 3, 6, 12]),  # a stage each: 24 sequences, 2 microbatches at least
        (24, 4, {"strategy": "pipeline", "pipeline__stages": 2}, [1, 2, 3, 6]),
    ],
)
def test_the_microbatches_to_try_divide_a_ranks_share_and_fill_the_stages(
    global_batch, world_size, changes, microbatches
):
    config = recipe(data__global_batch=global_batch, data__validation_chunks=0, **changes)
    layouts = layouts_to_try(config, world_size)
    assert list(layouts) == microbatches
    for microbatch, layout in layouts.items():
        assert layout.microbatches * layout.dp_size * microbatch == global_batch


def test_a_layout_that_cannot_be_is_refused_before_anything_is_tried():
    with pytest.raises(ConfigError, match=r"data.global_batch 3 does not divide into microbatches of 1 on 2"):
        layouts_to_try(recipe(data__global_batch=3, data__validation_chunks=0), 2)


@pytest.mark.parametrize(
    ("seconds", "tried", "chosen"),
    [
        ([4.0, 3.0, 2.0], 3, 4),
        ([4.0, 3.99, 3.98], 3, 1),  # not worth its memory
        ([2.0, 3.0, 1.0], 2, 1),  # clearly slower: the next is not tried
        ([2.0, 1.0, None], 2, 2),  # does not fit
    ],
)
def test_the_smallest_of_the_fastest_is_chosen(seconds, tried, chosen):
    trials = try_in_turn([1, 2, 4], lambda microbatch: dict(zip([1, 2, 4], seconds, strict=True))[microbatch])
    assert len(trials) == tried
    assert fastest(trials).microbatch == chosen


def test_the_order_of_trials_does_not_matter():
    trials = [Trial(4, 1.0), Trial(1, 1.02), Trial(2, 3.0)]
    assert fastest(trials) == fastest(trials[::-1]) == Trial(1, 1.02)


@pytest.fixture(scope="module", params=["fsdp", "pipeline"])
def unsettled(request):
    """A recipe that does not say, its layout and strategy."""
    changes = {"strategy": request.param, "training__microbatch": None, "data__document_mask": True}
    config = recipe(**changes, data__global_batch=8, data__validation_chunks=0)
    layout = lay_out(config, 1)
    with group_of_one():
        yield config, layout, build_strategy(config, layout, CPU)


def chosen(strategy, config, path):
    """What is known after a microbatch was chosen."""
    layout = lay_out(config, 1)
    findings = Findings(path, config, layout, CPU)
    choose_microbatch(strategy, config, layout, CPU, findings)
    return findings.found


def test_what_is_measured_is_used_and_changes_no_weight(unsettled, tmp_path):
    config, _, strategy = unsettled
    before = [parameter.detach().clone() for parameter in strategy.model.parameters()]
    found = chosen(strategy, config, tmp_path / "told.json")
    assert [trial.microbatch for trial in found.trials] == [1, 2, 4, 8][: len(found.trials)]
    assert all(trial.step_s > 0 for trial in found.trials)
    assert strategy.config.microbatch == found.fits == fastest(found.trials).microbatch
    assert strategy.layout.microbatches * found.fits == 8
    for parameter, value in zip(strategy.model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, value)


def test_a_restart_measures_again_only_if_something_is_different(unsettled, tmp_path):
    config, _, strategy = unsettled
    path = tmp_path / "told.json"
    found = chosen(strategy, config, path)
    written = path.read_bytes()
    assert read_sealed(path)["trials"] == [vars(trial) for trial in found.trials]
    assert chosen(strategy, config, path) == found
    assert path.read_bytes() == written
    other = recipe(strategy=config.strategy, training__microbatch=None, data__global_batch=4, data__validation_chunks=0)
    assert chosen(strategy, other, path).trials != found.trials
    assert read_sealed(path)["recipe"]["data"]["global_batch"] == 4
    path.write_bytes(written[:-9])
    assert len(chosen(strategy, config, path).trials) >= 1
    assert len(read_sealed(path)["trials"]) >= 1


def test_a_recipe_that_says_is_not_asked_again(unsettled, tmp_path):
    _, _, strategy = unsettled
    config = recipe(strategy=strategy.config.strategy, training__microbatch=2)
    assert chosen(strategy, config, tmp_path / "told.json").trials == ()
    assert strategy.config.microbatch == 2
    assert not (tmp_path / "told.json").exists()


@pytest.mark.parametrize("said", [None, 4])
def test_no_larger_microbatch_is_used_than_is_known_to_fit(unsettled, tmp_path, said):
    _, _, strategy = unsettled
    config = recipe(
        strategy=strategy.config.strategy, training__microbatch=said, data__global_batch=8, data__validation_chunks=0
    )
    Findings(tmp_path / "told.json", config, lay_out(config, 1), CPU).add_here(at_most=2, reason="rank 0")
    found = chosen(strategy, config, tmp_path / "told.json")
    assert strategy.config.microbatch <= 2
    assert {trial.microbatch for trial in found.trials} <= {1, 2}
    assert found.reason == "rank 0"


@pytest.mark.parametrize(
    ("at_most", "changes", "wanted"),
    [
        (5, {}, 4),
        (4, {}, 4),
        (3, {}, 3),
        (2, {}, 2),
        (1, {}, 1),
        (0, {}, None),
        (12, {"strategy": "pipeline"}, 6),  # two stages need two microbatches
    ],
)
def test_the_largest_microbatch_that_can_be_laid_out_is_found(at_most, changes, wanted):
    config = recipe(data__global_batch=12, data__validation_chunks=0, **changes)
    found = largest(config, 2 if changes else 1, at_most)
    assert (found and found[0]) == wanted
    assert found is None or found[1] == lay_out(config.with_microbatch(wanted), 2 if changes else 1)


class Narrow:
    """A strategy on a device on which no more than `most` sequences fit; only a GPU runs out of memory so."""

    def __init__(self, strategy, most):
        self.strategy, self.most = strategy, most

    def __getattr__(self, name):
        return getattr(self.strategy, name)

    def forward_backward(self, batch):
        if self.strategy.config.microbatch > self.most:
            raise StepOutOfMemory(None)
        return self.strategy.forward_backward(batch)


def test_what_does_not_fit_is_not_chosen(unsettled, tmp_path):
    config, _, strategy = unsettled
    assert {trial.microbatch for trial in chosen(Narrow(strategy, 2), config, tmp_path / "told.json").trials} <= {1, 2}
    assert strategy.config.microbatch <= 2


def test_a_model_of_which_one_sequence_does_not_fit_is_told(unsettled, tmp_path):
    config, _, strategy = unsettled
    with pytest.raises(StepOutOfMemory):
        chosen(Narrow(strategy, 0), config, tmp_path / "told.json")
