"""Less at a time when memory ran out: the same step again in smaller microbatches, on every rank alike.

Global batch, order of the data, weights and optimizer state stay; only more, smaller microbatches add up to a gradient.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from shared.errors import UserError
from train.collective import rank
from train.data import Batch
from train.findings import Findings
from train.layout import Layout
from train.memory_errors import RankOutOfMemory, Shortage, StepOutOfMemory, is_out_of_memory, shortage_of
from train.metrics import RunLog
from train.microbatch import largest, try_out
from train.peak import dearest
from train.strategy import Strategy

T = TypeVar("T")


class Backoff:
    """What a step asks for its loss and gradient, instead of the strategy that works them out."""

    def __init__(self, strategy: Strategy, findings: Findings, log: RunLog) -> None:
        self.strategy, self.findings, self.log = strategy, findings, log
        self.step = 0
        """The one that is worked on, 1 being the first; 0 before it."""
        self.first = 0
        """The one that a smaller microbatch would be used from."""
        if findings.found.is_eager:
            self._give_up_compiling(findings.found.reason or "")

    def probe(self, device: torch.device) -> None:
        """Find out whether a step fits in the strategy's microbatch, unless that is known; use a smaller one if not.

        The optimizer's state must be there. Every rank must call it.

        Raises: UserError if not even the smallest does.
        """
        if self.findings.found.fits == self.strategy.config.microbatch:
            return
        self._insist(lambda: self._try_out(device))
        self.findings.add(fits=self.strategy.config.microbatch)

    def forward_backward(self, step: int, batch: Batch) -> Tensor:
        """See Strategy; where memory runs out, with smaller microbatches from then on.

        Random numbers of a second try begin with the seed that was set last.

        Raises: UserError if there is no smaller microbatch. What can not be agreed between ranks, see `restarting`.
        """
        self.step = self.first = step
        return self._insist(lambda: self.strategy.forward_backward(batch))

    def evaluate(self, batch: Batch) -> Tensor:
        """See Strategy; as forward_backward."""
        self.first = self.step + 1
        return self._insist(lambda: self.strategy.evaluate(batch))

    @contextmanager
    def restarting(self) -> Iterator[None]:
        """Where memory runs out inside on this rank alone, a smaller microbatch is written down for the next start.

        The other ranks wait in a collective that this one does not reach, or this one's weights are half updated.

        Raises: RankOutOfMemory then; UserError if there is no smaller microbatch.
        """
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if isinstance(error, StepOutOfMemory):
                shortage = error.shortage
            elif is_out_of_memory(error):
                shortage = shortage_of(error, rank())
            else:
                raise
            found = self._remedy(shortage)
            self.findings.add_here(**found)
            self.log.tell("backoff", **self._told(shortage, found))
            raise RankOutOfMemory(f"{shortage}: all ranks start again with less at a time") from error

    def _insist(self, work: Callable[[], T]) -> T:
        while True:
            try:
                return work()
            except StepOutOfMemory as error:
                shortage = error.shortage
            self._shrink(shortage)

    def _shrink(self, shortage: Shortage) -> None:
        """Go on with a smaller microbatch, or uncompiled; every rank must call it."""
        found = self._remedy(shortage)
        self.log.event("backoff", **self._told(shortage, found))
        self.findings.add(**found)
        if found.get("is_eager"):
            self._give_up_compiling(str(shortage))
        self._use(found["at_most"])
        torch.manual_seed(torch.initial_seed())

    def _remedy(self, shortage: Shortage) -> dict[str, Any]:
        """What to remember, and go on with, after `shortage`.

        Raises: UserError if nothing is left to try.
        """
        config, layout = self.strategy.config, self.strategy.layout
        smaller = largest(config, _world_size(layout), config.microbatch // 2)
        if smaller is not None:
            return {"at_most": smaller[0], "fits": None, "reason": str(shortage)}
        if shortage.phase == "compile" and not self.findings.found.is_eager:
            return {"at_most": config.microbatch, "fits": None, "is_eager": True, "reason": str(shortage)}
        raise UserError(self._too_little(shortage))

    def _too_little(self, shortage: Shortage) -> str:
        config = self.strategy.config
        _, held = dearest(config, self.strategy.layout)
        return (
            f"{shortage} with a microbatch of {config.microbatch}, the smallest that can be laid out: a rank needs "
            f"about {held}: use more ranks, a smaller model, a shorter data.sequence_length or "
            "training.activation_checkpointing full"
        )

    def _told(self, shortage: Shortage, found: dict[str, Any]) -> dict[str, Any]:
        before = self.strategy.config.microbatch
        return {"step": self.step, "first": self.first, **asdict(shortage), "from": before, "to": found["at_most"]}

    def _use(self, microbatch: int) -> None:
        config = self.strategy.config
        chosen = largest(config, _world_size(self.strategy.layout), microbatch)
        assert chosen is not None, "it was laid out before"
        self.strategy.use_microbatch(config.with_microbatch(chosen[0]), chosen[1])

    def _try_out(self, device: torch.device) -> None:
        """A step of as few microbatches as hold all that a whole one holds."""
        strategy = self.strategy
        config, whole = strategy.config, strategy.layout
        few = min(2 * whole.num_stages, whole.microbatches)
        strategy.use_microbatch(config, replace(whole, microbatches=few))
        try_out(strategy, device)
        strategy.use_microbatch(config, whole)

    def _give_up_compiling(self, reason: str) -> None:
        for part in self.strategy.parts:
            if part.compilation is not None:
                part.compilation.give_up(reason)


def _world_size(layout: Layout) -> int:
    return layout.num_stages * layout.dp_size
