"""Which microbatch is fastest: measured before the first step, where a recipe does not say.

Only how many sequences go through the model at once is chosen: the global batch, and with it what a step is, stays.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import takewhile

import numpy as np
import torch

from shared.errors import ConfigError
from train.collective import gather
from train.config import RunConfig
from train.data import Batch
from train.findings import Findings, Trial
from train.layout import Layout, lay_out
from train.memory_errors import StepOutOfMemory
from train.strategy import Strategy

SPACING = 1.5
"""A microbatch is tried if it is so many times the one tried before it."""
TOLERANCE = 0.03
"""A larger microbatch must be faster by this share to be worth its memory."""
GIVE_UP = 0.9
"""Larger ones are not tried once one is only this share as fast as the best."""
TRIES = 2
"""Of a step, after one that warms up; the shorter counts."""


def choose_microbatch(
    strategy: Strategy,
    config: RunConfig,
    layout: Layout,
    device: torch.device,
    findings: Findings,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Make `strategy` use the fastest microbatch, if the recipe does not say which; findings.found.trials has why.

    Nothing is tried if that is known already. Weights and random numbers stay as they are; every rank must call it.

    Raises: StepOutOfMemory if not even one sequence at a time fits.
    """
    world_size, found = layout.num_stages * layout.dp_size, findings.found
    if config.training.microbatch is not None:
        chosen = largest(config, world_size, min(config.microbatch, found.at_most or config.microbatch))
    else:
        layouts = layouts_to_try(config, world_size)
        if found.at_most is not None:
            layouts = {microbatch: layouts[microbatch] for microbatch in layouts if microbatch <= found.at_most}
        if not found.trials:
            wanted = takewhile(lambda _: not is_asked_to_stop(), layouts)
            trials = try_in_turn(wanted, partial(_measure, strategy, config, layouts, device))
            if is_asked_to_stop():  # no step will be done
                return
            findings.add(trials=tuple(trials))
        best = fastest(trial for trial in findings.found.trials if trial.microbatch in layouts).microbatch
        findings.add(fits=best)
        chosen = best, layouts[best]
    assert chosen is not None, "what the recipe says was laid out, and what did not fit was replaced by what can be"
    strategy.use_microbatch(config.with_microbatch(chosen[0]), chosen[1])


def largest(config: RunConfig, world_size: int, at_most: int) -> tuple[int, Layout] | None:
    """The largest microbatch up to that which can be laid out, and the layout; None if there is none."""
    for microbatch in range(at_most, 0, -1):
        try:
            return microbatch, lay_out(config.with_microbatch(microbatch), world_size)
        except ConfigError:  # it does not divide a rank's share, or its number does not suit the schedule
            continue
    return None


def _measure(
    strategy: Strategy, config: RunConfig, layouts: Mapping[int, Layout], device: torch.device, microbatch: int
) -> float | None:
    """Seconds of the forward and backward passes of a step, of the slowest rank; None if a rank's memory is too small.

    A step of many microbatches is not run in full: its time is on a line through those of two short ones.
    """
    layout = layouts[microbatch]
    counts = sorted({min(factor * layout.num_stages, layout.microbatches) for factor in (1, 2)})
    try:
        seconds = []
        for count in counts:
            strategy.use_microbatch(config.with_microbatch(microbatch), replace(layout, microbatches=count))
            tried = [try_out(strategy, device) for _ in range(1 + TRIES)]
            seconds.append(max(gather(min(tried[1:]))))
    except StepOutOfMemory:
        if microbatch == min(layouts):
            raise
        return None
    if len(counts) == 1:
        return seconds[0]
    each = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    return seconds[1] + max(each, 0.0) * (layout.microbatches - counts[1])


def try_out(strategy: Strategy, device: torch.device) -> float:
    """Seconds that a step's forward and backward passes take, of any text; its gradient is worked out and dropped."""
    batch = _any_batch(strategy.config, strategy.layout, device)
    began = time.perf_counter()
    strategy.forward_backward(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken_s = time.perf_counter() - began
    strategy.clip_grad_norm(1.0)
    strategy.step_metrics()  # what was measured for them is not of the run
    for parameter in strategy.model.parameters():
        parameter.grad = None
    return taken_s


def _any_batch(config: RunConfig, layout: Layout, device: torch.device) -> Batch:
    """As much text as the microbatches hold, all one id; its documents begin where the sequences do."""
    shape = config.microbatch * layout.microbatches, config.data.sequence_length
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    starts = torch.zeros(shape, dtype=torch.int32, device=device) if config.data.tells_documents else None
    return Batch(ids, ids, ids.numel() * layout.dp_size, np.empty((shape[0], 0), np.uint8), starts)


def layouts_to_try(config: RunConfig, world_size: int) -> dict[int, Layout]:
    """The layout for each microbatch worth trying, ascending.

    >>> from train.config import DataConfig
    >>> list(layouts_to_try(RunConfig(data=DataConfig(global_batch=24)), 2))
    [1, 2, 3, 6, 12]

    Raises: ConfigError if not even one sequence at a time can be laid out.
    """
    layout = lay_out(config.with_microbatch(1), world_size)
    share = config.data.global_batch // layout.dp_size
    layouts, last = {1: layout}, 1
    for microbatch in (number for number in range(2, share + 1) if share % number == 0):
        if microbatch < SPACING * last:
            continue
        try:
            layouts[microbatch] = lay_out(config.with_microbatch(microbatch), world_size)
        except ConfigError:  # too few microbatches for the schedule
            continue
        last = microbatch
    return layouts


def try_in_turn(microbatches: Iterable[int], measure: Callable[[int], float | None]) -> list[Trial]:
    """A trial of each microbatch in ascending order, until one is clearly slower than the best or does not fit.

    `measure` gives the seconds of a step, or None where memory does not suffice.
    """
    trials: list[Trial] = []
    for microbatch in microbatches:
        step_s = measure(microbatch)
        if step_s is None:
            break
        trials.append(Trial(microbatch, step_s))
        if min(trial.step_s for trial in trials) < GIVE_UP * step_s:
            break
    return trials


def fastest(trials: Iterable[Trial]) -> Trial:
    """The smallest microbatch that is as good as the fastest.

    >>> fastest([Trial(1, 2.0), Trial(2, 1.02), Trial(4, 1.0)])
    Trial(microbatch=2, step_s=1.02)
    """
    trials = sorted(trials, key=lambda trial: trial.microbatch)
    least = min(trial.step_s for trial in trials)
    return next(trial for trial in trials if trial.step_s <= (1 + TOLERANCE) * least)
