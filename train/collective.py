"""The few things that ranks say to each other outside of the model; a process without a group is a group of one."""

import hashlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from shared.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """Number of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's `value`, in the order of the ranks, on every rank; `group` is of all ranks too."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    return values  # type: ignore[return-value]


def any_rank(flag: bool, group: dist.ProcessGroup | None = None) -> bool:
    """True on every rank if it is true on one; `group` is of all ranks too."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor([flag], dtype=torch.int32)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=group)
    return bool(flags.item())


def barrier() -> None:
    """Wait until every rank is here."""
    any_rank(False)


def on_every_rank(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """What `work` gives on each rank, on every rank. If it fails on one, every rank raises that, so that none waits.

    `work` talks to no other rank; `group` is of all ranks.
    """
    mine: tuple[T | None, Exception | None]
    try:
        mine = work(), None
    except (UserError, OSError) as error:
        mine = None, error
    except Exception as error:
        mine = None, RuntimeError(f"rank {rank()} failed: {error!r}")
    results = gather(mine, group)
    for _, failure in results:
        if failure is not None:
            raise failure
    return [value for value, _ in results]  # type: ignore[misc]


def on_first_rank(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `work` gives on rank 0, which alone does it, on every rank. If it fails, every rank raises that."""
    return on_every_rank(lambda: work() if rank() == 0 else None, group)[0]  # type: ignore[return-value]


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
