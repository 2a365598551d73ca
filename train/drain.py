"""Going through the rest of a pipeline's schedule after memory ran out on a rank, so that no other rank waits for it.

The rank's stages compute nothing more; in their place, in the same order, placeholders of the same shape are sent. When
the schedule is through, all ranks are told with the loss. A rank that raised instead would leave its neighbours waiting
for what it never sends, until their time is out.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from train.collective import rank
from train.memory_errors import Shortage, is_out_of_memory, release, shortage_of


class Holder(Protocol):
    """A stage: something that holds what is under way."""

    submod: nn.Module

    def drop(self) -> None:
        """Let go of all that is not to be sent."""


class Drain:
    """What the stages of one rank share: whether memory ran out, from when on they give placeholders."""

    def __init__(self, is_possible: bool) -> None:
        self.is_possible = is_possible
        """Not where stages are sharded: a rank that computes nothing leaves out what it owes in their collectives."""
        self.shortage: Shortage | None = None
        self.stages: list[Holder] = []
        self.losses: Sequence[Tensor] = ()
        """Of the schedule; each holds on to the pass that it came from."""

    def compute(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What `work` gives; None from when memory has run out."""
        if self.shortage is not None:
            return None
        try:
            return work(*arguments, **named)
        except Exception as error:
            if not (self.is_possible and is_out_of_memory(error)):
                raise
            self._begin(error)
            return None

    def _begin(self, error: Exception) -> None:
        self.shortage = shortage_of(error, rank())
        for loss in self.losses:
            loss.detach_()
        for stage in self.stages:
            stage.drop()
        for stage in self.stages:
            release(error, stage.submod)
