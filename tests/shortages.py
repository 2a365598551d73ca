"""Memory that runs out where and when a test wants it to: put into the trainer from outside."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch._inductor.exc import InductorError
from torch.distributed.pipelining import PipelineStage

import train.model
import train.optim
import train.stage
from train.backoff import Backoff
from train.model import Block

RESTARTED = "TORCHELASTIC_RESTART_COUNT"
LASTING = ExitStack()


@dataclass
class Fault:
    """What goes wrong on each of `ranks`."""

    place: str
    step: int = 2
    """0: before the first."""
    call: int = 1
    """Of the place in that step, the first that fails."""
    times: int = 1
    """So many calls fail, one after another."""
    ranks: tuple[int, ...] = (0,)
    at_start: int | None = None
    """Only in that start of all ranks, counted by torchrun."""
    now = 0
    """The step that the run is at."""

    def check(self) -> None:
        """Raises: OutOfMemoryError if it is time for it."""
        if self.now != self.step:
            return
        self.call -= 1
        if -self.times < self.call <= 0:
            raise torch.OutOfMemoryError(f"no memory for {self.place}")


class _Passing(torch.autograd.Function):
    """The same value, whose gradient may not be to be had."""

    @staticmethod
    def forward(ctx, x, fault):
        ctx.fault = fault
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.fault.check()
        return gradient, None


@contextmanager
def running_out(fault: Fault | None) -> Iterator[None]:
    """Inside, memory runs out as `fault` says, if this rank is one of its."""
    rank = dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))
    is_start = fault is not None and fault.at_start in {None, int(os.environ.get(RESTARTED, "0"))}
    with pytest.MonkeyPatch.context() as patch:
        if fault is not None and is_start and rank in fault.ranks:
            _note_steps(patch, fault)
            PLACES[fault.place](patch, fault)
        yield


def begin() -> None:
    """In a rank that was just started: memory runs out as the variable SHORTAGES says, to the end of the process."""
    if "RANK" in os.environ:
        for fault in json.loads(os.environ["SHORTAGES"]):
            LASTING.enter_context(running_out(Fault(**fault)))


def _note_steps(patch, fault):
    plain = Backoff.forward_backward

    def forward_backward(self, step, batch):
        fault.now = step
        return plain(self, step, batch)

    patch.setattr(Backoff, "forward_backward", forward_backward)


def _before(owner, name):
    def put(patch, fault):
        plain = getattr(owner, name)

        def checked(*arguments, **named):
            fault.check()
            return plain(*arguments, **named)

        patch.setattr(owner, name, checked)

    return put


def _backward(patch, fault):
    plain = Block._compute
    patch.setattr(Block, "_compute", lambda *arguments: _Passing.apply(plain(*arguments), fault))


def _receive(patch, fault):
    def empty(function, *arguments, **named):
        def checked():
            fault.check()
            return function(*arguments, **named)

        return checked

    patch.setattr(train.stage, "partial", empty)


def _optimizer(patch, fault):
    """Half of the weights are moved already."""
    plain = train.optim.AdamW.step

    def step(self, *arguments):
        with torch.no_grad():
            if fault.now == fault.step:
                self.param_groups[0]["params"][0].mul_(2.0)
        fault.check()
        return plain(self, *arguments)

    patch.setattr(train.optim.AdamW, "step", step)


def _compile(patch, fault):
    """The compiler, which gives back what it was given."""

    def compiled(function, **options):
        return partial(_compile_and_run, function, fault)

    patch.setattr(torch, "compile", compiled)


def _compile_and_run(function, fault, *arguments):
    try:
        fault.check()
    except torch.OutOfMemoryError as error:
        raise InductorError(error, None) from None
    return function(*arguments)


PLACES = {
    "forward": _before(Block, "_compute"),
    "backward": _backward,
    "weights": _before(PipelineStage, "backward_weight_one_chunk"),
    "loss": _before(train.model, "fused_loss"),
    "receive": _receive,
    "optimizer": _optimizer,
    "compile": _compile,
}
