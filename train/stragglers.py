"""How fast a rank is at what it does alone, and which rank is steadily slower than the others.

In most places of a step a rank may be waiting for another, so the time of a step says nothing about one of them. Two
things are a rank's own: waiting for data, and the forward pass of a block, whose hooks here run inside those by which
`fully_shard` gathers weights. Stages of a pipeline hold different numbers of blocks: each is held to the whole model.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median, median_high, median_low
from typing import Any

import torch
from torch import nn

from train.heartbeat import Record
from train.stage import Mark, Stopwatch

WINDOW = 20
"""Steps that a rank's own work is the median of."""
LEAST = 10
"""Steps before it is known."""
SLOWER = 1.3
"""Times the median rank's own work: from here on a rank is a straggler, if it is steady."""
SCORE = 3.0
"""Robust deviations that it must be slower by, too."""
DEVIATION = 1.4826
"""Standard deviations in a median absolute deviation of a normal distribution."""


class OwnWork:
    """Seconds of a step that are this rank's own: the wait for data and the forward passes of all layers."""

    def __init__(self, blocks: Iterable[nn.Module], num_layers: int, device: torch.device) -> None:
        self._clock = Stopwatch(device)
        self._began: Mark = self._clock.mark()
        self._own_s = deque[float](maxlen=WINDOW)
        held = list(blocks)
        self._scale = num_layers / len(held) if held else 0.0
        for block in held:
            block.register_forward_pre_hook(self._begin)  # after the one that gathers weights
            block.register_forward_hook(self._end, prepend=True)  # before the one that gives them back

    def of_step(self, data_wait_s: float) -> tuple[float, float]:
        """The median of the last steps, with the one that has ended, and its spread; zeros if it is not known yet.

        On a GPU the step's forward passes must have ended.
        """
        self._own_s.append(data_wait_s + self._clock.seconds() * self._scale)
        if len(self._own_s) < LEAST or not self._scale:
            return 0.0, 0.0
        usual_s = median(self._own_s)
        return usual_s, DEVIATION * median(abs(seconds - usual_s) for seconds in self._own_s)

    def _begin(self, block: nn.Module, arguments: Any) -> None:
        del block, arguments
        self._began = self._clock.mark()

    def _end(self, block: nn.Module, arguments: Any, output: Any) -> None:
        del arguments, output
        if block.training:
            self._clock.spans.append((self._began, self._clock.mark()))


def stragglers(records: Sequence[Record]) -> list[tuple[Record, float]]:
    """The ranks that are steadily slower than the others, each with what the median rank takes."""
    known = [record for record in records if record.own_s > 0]
    if len(known) < 2:
        return []
    usual_s = median_low(record.own_s for record in known)
    spread_s = median_high(record.spread_s for record in known)
    return [
        (record, usual_s)
        for record in known
        if record.own_s >= SLOWER * usual_s and record.own_s - usual_s >= SCORE * max(record.spread_s, spread_s)
    ]
