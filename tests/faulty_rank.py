"""One rank of a run with a fault in it: `faulty_rank PLACE FAULT RANK STEP` and the arguments of `train run`.

The fault is put in from outside: from that step on, that rank meets it at each call of a function. A rank that was
started again is well, unless the fault ends with "!". `gradient poison` is a gradient that is not finite in that step.
"""

import ctypes
import math
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import train.loop
import train.run
import train.step
from train.backoff import Backoff
from train.checkpoint import Checkpoints
from train.data import ChunkReader
from train.model import Block
from train.outcome import OUT_OF_MEMORY
from train.signals import SIGNALS
from train.single import SingleStrategy

LONG_S = 10_000
SLOW_S = 0.05
"""What a slow rank adds to a call: a multiple of what it takes otherwise."""
steps = 0


def loop() -> None:
    while True:
        pass


def receive() -> None:
    """A message that nobody sends."""
    dist.recv(torch.zeros(1), tag=77)


PLACES: dict[str, tuple[Any, str]] = {
    "setup": (train.run, "build_optimizer"),
    "resume": (Checkpoints, "recover"),
    "fetch": (ChunkReader, "fetch"),
    "reader": (ChunkReader, "_read"),  # its thread
    "forward": (Block, "forward"),
    "optimizer": (torch.optim.AdamW, "step"),
    "agree": (train.step, "gather_rows"),
    "validate": (Backoff, "evaluate"),
    "save": (Checkpoints, "save"),
}
FAULTS: dict[str, Callable[[], object]] = {
    "loop": loop,
    "sleep": lambda: time.sleep(LONG_S),
    "lock": lambda: ctypes.PyDLL(None).sleep(LONG_S),  # with Python's lock
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "receive": receive,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: os._exit(OUT_OF_MEMORY),
    **{number.name: partial(signal.raise_signal, number) for number in SIGNALS},
    "slow": lambda: time.sleep(SLOW_S),
    "none": lambda: None,
}


def before(owner: Any, name: str, fault: Callable[[], object], step: int) -> None:
    """Call `fault` in every call of a function from that step on."""
    function = getattr(owner, name)

    def changed(*arguments: Any, **named: Any) -> Any:
        if steps >= step:
            fault()
        return function(*arguments, **named)

    setattr(owner, name, changed)


def poison(step: int) -> None:
    """The gradient of that step, counted from the start, is NaN under FSDP."""
    clip = SingleStrategy.clip_grad_norm

    def changed(strategy: SingleStrategy, max_norm: float) -> torch.Tensor:
        if steps == step:
            for parameter in strategy.model.parameters():
                parameter.grad.fill_(math.nan)
        return clip(strategy, max_norm)

    SingleStrategy.clip_grad_norm = changed


def count_step() -> None:
    global steps  # noqa: PLW0603
    steps += 1


def main(place: str, fault: str, rank: str, step: str, *arguments: str) -> None:
    torch.set_num_threads(1)
    is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if rank == os.environ["RANK"] and (is_first or fault.endswith("!")):
        if (place, fault) == ("gradient", "poison"):
            poison(int(step))
        else:
            before(*PLACES[place], FAULTS[fault.removesuffix("!")], int(step))
    before(ChunkReader, "fetch", count_step, 0)
    sys.argv[1:] = ["run", *arguments]
    runpy.run_module("train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
