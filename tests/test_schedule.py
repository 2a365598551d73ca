import dataclasses
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import ConfigError
from tests.train_helpers import recipe
from train.config import OptimizerConfig
from train.schedule import (
    cooldown_begin,
    first_difference,
    learning_rate,
    learning_rates,
    why_not_annealed,
)

CONFIG = OptimizerConfig(learning_rate=3.0, min_learning_rate=1.0, warmup_steps=10, cooldown_fraction=0.25)
SCHEDULES = ["cosine", "constant", "wsd"]


def scheduled(name, **changes):
    return dataclasses.replace(CONFIG, schedule=name, **changes)


# the learning rate


@pytest.mark.parametrize(
    ("step", "cosine", "constant", "wsd"),
    [
        (0, 1.0, 1.0, 1.0),  # the first step is made with the minimum
        (1, 1.2, 1.2, 1.2),
        (5, 2.0, 2.0, 2.0),
        (10, 3.0, 3.0, 3.0),  # the peak
        (35, 2.0 + math.sqrt(0.5), 3.0, 3.0),  # an eighth of a turn
        (60, 2.0, 3.0, 3.0),
        (82, 2.0 + math.cos(math.pi * 0.72), 3.0, 3.0),  # where the cooldown begins: 110 - 28
        (96, 2.0 + math.cos(math.pi * 0.86), 3.0, 2.0),  # half of it
        (109, 2.0 + math.cos(math.pi * 0.99), 3.0, 1.0 + 2 / 28),  # the last step that is made
        (110, 1.0, 3.0, 1.0),  # the end of the schedule
        (10_000, 1.0, 3.0, 1.0),
    ],
)
def test_the_learning_rate_of_each_step(step, cosine, constant, wsd):
    rates = [learning_rate(scheduled(name), 110, step) for name in SCHEDULES]
    assert rates == pytest.approx([cosine, constant, wsd])


@pytest.mark.parametrize(("step", "rate"), [(0, 3e-5), (1000, 1.65e-4), (2000, 3e-4), (160_000, 3e-5)])
def test_the_learning_rate_of_argonne_2(step, rate):
    assert learning_rate(OptimizerConfig(), 160_000, step) == pytest.approx(rate)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total_steps", [1, 5, 10])
def test_a_run_shorter_than_its_warmup_warms_up(schedule, total_steps):
    assert [learning_rate(scheduled(schedule), total_steps, step) for step in (0, 5)] == [1.0, 2.0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(schedule):
    assert learning_rate(scheduled(schedule, warmup_steps=0), 100, 0) == 3.0


@pytest.mark.parametrize(
    ("fraction", "warmup_steps", "begin"),
    [(0.25, 10, 75), (0.0, 10, 100), (1.0, 0, 0), (1.0, 10, 10), (0.5, 60, 60), (0.333, 0, 67)],
)
def test_a_cooldown_begins_after_the_warmup(fraction, warmup_steps, begin):
    config = scheduled("wsd", cooldown_fraction=fraction, warmup_steps=warmup_steps)
    assert cooldown_begin(config, 100) == begin
    assert learning_rate(config, 100, begin) == 3.0


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup_steps=st.integers(0, 50),
    fraction=st.floats(0, 1),
    total_steps=st.integers(1, 200),
)
@example(schedule="cosine", warmup_steps=2, fraction=0.0, total_steps=1)  # a warmup that outlasts the run
def test_a_schedule_rises_to_its_peak_and_never_rises_again(schedule, warmup_steps, fraction, total_steps):
    config = scheduled(schedule, warmup_steps=warmup_steps, cooldown_fraction=fraction)
    rates = [learning_rate(config, total_steps, step) for step in range(total_steps + 2)]
    assert all(1.0 <= rate <= 3.0 for rate in rates)
    top = min(warmup_steps, len(rates) - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_each_group_has_its_learning_rate_in_the_metrics():
    config = dataclasses.replace(CONFIG, embedding_learning_rate_factor=0.5)
    rates = {"lr": 2.0, "lr_matrices": 2.0, "lr_embeddings": 1.0, "lr_vectors": 2.0}
    assert learning_rates(config, 110, 60) == pytest.approx(rates)


# horizons


@pytest.mark.parametrize(("tokens", "steps"), [(1, 1), (64, 1), (65, 2), (640, 10), (641, 11)])
def test_a_horizon_in_tokens_is_the_steps_that_reach_it(tokens, steps):
    config = recipe(training__total_steps=None, training__total_tokens=tokens)  # 4 sequences of 16 a step
    assert config.total_steps == steps


def test_a_horizon_in_steps_is_that():
    assert recipe(training__total_steps=7).total_steps == 7


def test_a_run_without_a_horizon_is_refused():
    message = r"^training.total_steps is not set: give it, or training.total_tokens$"
    with pytest.raises(ConfigError, match=message):
        _ = recipe(training__total_steps=None).total_steps


@pytest.mark.parametrize(
    ("changes", "last_step", "message"),
    [
        ({}, 4, None),
        ({"optimizer__schedule": "wsd"}, 4, None),
        (
            {"optimizer__warmup_steps": 5},
            4,
            "optimizer.warmup_steps 5 is longer than the horizon of 4 steps: the learning rate never reaches its peak; "
            "shorten it, or raise training.total_steps or training.total_tokens",
        ),
        (
            {},
            3,
            "stop-step 3 is before the horizon of 4 steps: the run ends at a learning rate of 0.0055, not annealed to "
            "0.001; start it again to go on",
        ),
        ({"optimizer__schedule": "wsd"}, 3, "stop-step 3 is before the horizon of 4 steps"),
        ({"optimizer__schedule": "constant"}, 4, "the learning rate never falls (schedule constant, 0.01 to the end)"),
        ({"optimizer__schedule": "constant"}, 3, "the learning rate never falls (schedule constant, 0.01 to the end)"),
        ({"optimizer__min_learning_rate": 1e-2}, 4, "the learning rate never falls (schedule cosine, 0.01 to the end)"),
        ({"optimizer__schedule": "wsd", "optimizer__cooldown_fraction": 0.0}, 4, "the learning rate never falls ("),
    ],
    ids=str,
)
def test_a_run_that_ends_without_annealing_is_told_why(changes, last_step, message):
    found = why_not_annealed(recipe(**changes), last_step)
    assert found == message if message is None else found.startswith(message)


# another schedule for a run that has begun


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        ({"total_steps": 100}, {"total_steps": 100}, None),
        ({"total_steps": 100}, {"total_steps": 200}, 82),  # the cooldown begins after 80 steps: the 81st has the peak
        ({"total_steps": 100}, {"total_steps": 60}, 50),
        ({"schedule": "constant"}, {"total_steps": 100}, 82),
        ({"cooldown_fraction": 0.5}, {"cooldown_fraction": 0.1}, 52),
        ({"schedule": "cosine"}, {"schedule": "cosine", "total_steps": 101}, 12),  # the 11th step has both peaks
        ({"total_steps": 100}, {"total_steps": None, "total_tokens": 6400}, None),
    ],
    ids=str,
)
def test_the_first_step_with_another_learning_rate_is_found(before, after, differs):
    def planned(changes):
        options = {"optimizer__schedule": "wsd", "optimizer__warmup_steps": 10, "training__total_steps": 100}
        for name, value in changes.items():
            options[f"{'training' if name.startswith('total') else 'optimizer'}__{name}"] = value
        return recipe(**options)

    assert first_difference(planned(before), planned(after), 100) == differs
    if differs:
        assert first_difference(planned(before), planned(after), differs - 1) is None
