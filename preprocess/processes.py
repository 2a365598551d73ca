"""Worker processes: how they start, and what each owes its parent: to leave Ctrl-C to it, and to end with it.

On Linux they are forked from a process that does nothing but load what they all need, once, while the command that
will want them still reads its options and plans. It has no thread of its own that would be lost in a fork.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext

from shared.claims import Claim, adopt

OPENED = ("choose", "duplicates", "select", "skip", "writer")
LOADED = [
    "preprocess.workers",
    *(f"preprocess.{name}" for name in OPENED),
    "awkward",
    "gigatoken",
    "numpy.ma",
]  # if installed


def worker_context() -> ForkServerContext | SpawnContext:
    """How worker processes are started."""
    return get_context("forkserver") if sys.platform == "linux" else get_context("spawn")


def prepare_workers() -> None:
    """Begin to load what workers need, so that they start quickly; they start without it, too."""
    if sys.platform == "linux":
        forkserver.set_forkserver_preload(LOADED)
        with interrupts_held():  # for good in that process and its children: Ctrl-C is left to their parent
            forkserver.ensure_running()


def become_worker(claims: Sequence[Claim]) -> None:
    """Make this process a worker of its parent, which has `claims`."""
    adopt(claims)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()


@contextmanager
def collection_held() -> Iterator[None]:
    """Python looks for no garbage meanwhile: it would search a large tokenizer.json while that is being read."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits meanwhile, here and, as signal masks are inherited, in a process started meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no interrupt comes here
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: held.append(number))  # another thread may catch it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if held:
        signal.raise_signal(signal.SIGINT)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
