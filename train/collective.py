"""The few things that ranks say to each other outside of the model; a process without a group is a group of one."""

import hashlib
import os
import sys
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """Number of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T) -> list[T]:
    """Every rank's `value`, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def any_rank(flag: bool) -> bool:
    """True on every rank if it is true on one."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def barrier() -> None:
    """Wait until every rank is here."""
    any_rank(False)


def gather_rows(rows: npt.NDArray[np.uint8], group: dist.ProcessGroup) -> npt.NDArray[np.uint8]:
    """The rows of all ranks of `group`, end to end; each rank has equally many."""
    mine = torch.from_numpy(rows)
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group=group)
    return torch.cat(everyone).numpy()


def leave(exit_code: int) -> NoReturn:
    """End this rank's process at once, without tearing the interpreter down.

    A gloo thread may still hold the last tensor that it carried. To free it, it asks for the interpreter's lock, and a
    thread that asks for it during the teardown is ended, which aborts the process (SIGABRT, seen on a busy machine).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def step_seed(seed: int, step: int) -> int:
    """Seed of this rank's random numbers (dropout) in one step: nothing random outlives a step, so none is saved."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank()}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
