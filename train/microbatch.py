"""Which microbatch is fastest: measured before the first step, where a recipe does not say.

Only how many sequences go through the model at once is chosen: the global batch, and with it what a step is, stays.
"""

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.config import unstructure
from shared.errors import ConfigError, FormatError, UserError
from shared.storage import read_sealed, write_sealed
from train.collective import gather, rank
from train.config import RunConfig
from train.data import Batch
from train.layout import Layout, lay_out
from train.strategy import Strategy

MICROBATCH_NAME = "microbatch.json"
SPACING = 1.5
"""A microbatch is tried if it is so many times the one tried before it."""
TOLERANCE = 0.03
"""A larger microbatch must be faster by this share to be worth its memory."""
GIVE_UP = 0.9
"""Larger ones are not tried once one is only this share as fast as the best."""
TRIES = 2
"""Of a step, after one that warms up; the shorter counts."""


@dataclass(frozen=True)
class Trial:
    """How long an optimizer step's forward and backward passes take with a microbatch."""

    microbatch: int
    step_s: float


def choose_microbatch(
    strategy: Strategy,
    config: RunConfig,
    layout: Layout,
    device: torch.device,
    remembered: Path,
    is_asked_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[Layout, list[Trial]]:
    """The layout with the microbatch that `strategy` uses from now on, and what was tried for it.

    Nothing is tried if the recipe has said, or if the file `remembered` tells of the same recipe on the same ranks.
    Weights and random numbers stay as they are; every rank must call it.

    Raises: UserError if not even one sequence at a time fits.
    """
    if config.training.microbatch is not None:
        return layout, []
    layouts = layouts_to_try(config, layout.num_stages * layout.dp_size)
    here = _situation(config, layout, device)
    trials = gather(_recall(remembered, here) if rank() == 0 else None)[0]
    if trials is None:
        wanted = takewhile(lambda _: not is_asked_to_stop(), layouts)
        trials = try_in_turn(wanted, lambda m: _step_seconds(strategy, config.with_microbatch(m), layouts[m], device))
        if is_asked_to_stop():  # no step will be done
            return layout, []
        if rank() == 0:
            write_sealed(remembered, {**here, "trials": [[trial.microbatch, trial.step_s] for trial in trials]})
    if not trials:
        raise UserError(
            "one sequence at a time does not fit the memory of a GPU: use more ranks, a smaller model, a shorter "
            "data.sequence_length or training.activation_checkpointing full"
        )
    chosen = fastest(trials).microbatch
    strategy.use_microbatch(config.with_microbatch(chosen), layouts[chosen])
    return layouts[chosen], trials


def _situation(config: RunConfig, layout: Layout, device: torch.device) -> dict[str, Any]:
    """All that the fastest microbatch may depend on."""
    cores = f"{os.cpu_count()} cores"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    return {"recipe": unstructure(config), "layout": str(layout), "device": name, "torch": torch.__version__}


def _recall(path: Path, here: dict[str, Any]) -> list[Trial] | None:
    """The trials in the file, if it is there, whole, and of this situation."""
    if not path.is_file():
        return None
    try:
        told = read_sealed(path)
    except FormatError:  # damaged: measured again, and written again
        return None
    is_here = all(told[name] == value for name, value in json.loads(json.dumps(here)).items())
    return [Trial(*trial) for trial in told["trials"]] if is_here else None


def _step_seconds(strategy: Strategy, config: RunConfig, layout: Layout, device: torch.device) -> float | None:
    """Seconds of the forward and backward passes of a step, of the slowest rank; None if a rank's memory is too small.

    A step of many microbatches is not run in full: its time is on a line through those of two short ones.
    """
    counts = sorted({min(factor * layout.num_stages, layout.microbatches) for factor in (1, 2)})
    seconds = []
    for count in counts:
        strategy.use_microbatch(config, replace(layout, microbatches=count))
        taken = gather(_seconds(strategy, _any_batch(config, layout.dp_size, count, device), device))
        if None in taken:
            return None
        seconds.append(max(second for second in taken if second is not None))
    if len(counts) == 1:
        return seconds[0]
    each = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    return seconds[1] + max(each, 0.0) * (layout.microbatches - counts[1])


def _seconds(strategy: Strategy, batch: Batch, device: torch.device) -> float | None:
    seconds = []
    try:
        for _ in range(1 + TRIES):
            began = time.perf_counter()
            strategy.forward_backward(batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            strategy.step_metrics()  # what was measured for them is not of the run
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    finally:
        for parameter in strategy.model.parameters():
            parameter.grad = None
    return min(seconds[1:])


def _any_batch(config: RunConfig, dp_size: int, microbatches: int, device: torch.device) -> Batch:
    """As much text as the microbatches hold, all one id; its documents begin where the sequences do."""
    shape = config.microbatch * microbatches, config.data.sequence_length
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    starts = torch.zeros(shape, dtype=torch.int32, device=device) if config.data.tells_documents else None
    return Batch(ids, ids, ids.numel() * dp_size, np.empty((shape[0], 0), np.uint8), starts)


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
