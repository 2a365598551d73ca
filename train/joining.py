"""The ranks of one start find each other, and nothing that an earlier start has left behind.

torchrun keeps one store for all its restarts, in which the addresses of the ranks that died are still written: those
of the next start would wait for them half an hour (seen with torch 2.13 and gloo). How often they were restarted is no
name for a start, as each node counts for itself. So rank 0 makes one up, and tells it to those who have just asked.
"""

import os
import time
import uuid

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

POLL_S = 0.02
PATIENCE_S = 1800.0


def join(backend: str) -> None:
    """Make the process group of this run, from what torchrun or `launch` has put into the environment."""
    store, rank, size = next(rendezvous("env://"))
    name = fresh_name(store, rank, size)
    dist.init_process_group(backend, store=PrefixStore(name, store), rank=rank, world_size=size)


def fresh_name(store: Store, rank: int, size: int) -> str:
    """The same on all ranks that call it now, and no other than now, whatever earlier calls have left in `store`.

    Raises: TimeoutError if a rank does not come.
    """
    mine, end_s = uuid.uuid4().hex, time.monotonic() + PATIENCE_S
    if rank > 0:
        store.set(f"asked/{rank}", mine)
        while _read(store, f"answered/{rank}")[32:] != mine:
            _pause(end_s, "rank 0")
        name = _read(store, f"answered/{rank}")[:32]
        store.set(f"heard/{name}/{rank}", "")
        return name
    waiting = set(range(1, size))
    while waiting:
        for other in waiting:
            store.set(f"answered/{other}", mine + _read(store, f"asked/{other}"))
        waiting = {other for other in waiting if not store.check([f"heard/{mine}/{other}"])}
        _pause(end_s, f"ranks {sorted(waiting)}")
    return mine


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _pause(end_s: float, missing: str) -> None:
    if time.monotonic() > end_s:
        raise TimeoutError(f"{missing} did not start within {PATIENCE_S:.0f} s, on {os.uname().nodename}")
    time.sleep(POLL_S)
