"""The processes of a run on this machine: started together, told of signals together, ended together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from train.outcome import HUNG, OUT_OF_MEMORY
from train.signals import Signals, held_back

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set for each rank: where it leaves its last words
POLL_S = 0.05
GRACE_S = 10.0
"""For the other ranks once one has ended badly: to say what they have seen of it. Nothing can be saved any more."""
MEANINGS = {OUT_OF_MEMORY: " (out of memory)", HUNG: " (a rank did not move)"}


@dataclass(frozen=True)
class Failure:
    """The rank whose end ended all, and how it ended."""

    rank: int
    exit_code: int
    """Minus the number of a signal that ended it, as subprocess has it."""
    message: str = ""

    def __str__(self) -> str:
        if self.exit_code < 0:
            return f"rank {self.rank} was ended by {signal.Signals(-self.exit_code).name}"
        return f"rank {self.rank} ended with exit code {self.exit_code}{MEANINGS.get(self.exit_code, '')}"


def run_ranks(arguments: Sequence[str], num_processes: int, restarts: int, signals: Signals) -> Failure | None:
    """Run `python -m train run` with `arguments` on so many ranks, to the end of all; None if all ended well.

    Every signal that comes is passed on, however often, and nothing is ended as long as no rank has ended badly: how
    long a save may take is for whoever kills all in the end to say. Then the others have GRACE_S.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    with TemporaryDirectory(prefix="argonne-") as directory:
        words = [Path(directory) / f"rank{rank}.json" for rank in range(num_processes)]
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # we keep the store
            "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
        }
        each = ({"RANK": str(r), "LOCAL_RANK": str(r), ERROR_FILE: str(path)} for r, path in enumerate(words))
        with held_back():  # until a rank hears them
            ranks = [_start(arguments, shared | mine) for mine in each]
        ended = _await_end(ranks, signals)
        if not any(ended.values()):
            return None
        rank = culprit(ended)
        message = json.loads(words[rank].read_text())["message"] if words[rank].exists() else ""
        return Failure(rank, ended[rank], message)


def culprit(exit_codes: Mapping[int, int]) -> int:
    """The rank that best tells why all ended, of exit codes in the order in which they were seen.

    One that was killed, hung or out of memory, then one that has a message, then one that may only have missed others,
    or got the SIGTERM that ends what is left.

    >>> culprit({0: 1, 1: -9}), culprit({0: 1, 1: 71}), culprit({0: 1, 1: 2}), culprit({1: 0, 0: 1})
    (1, 1, 1, 0)
    >>> culprit({1: -15, 0: 2})
    0
    """

    def weight(rank: int) -> int:
        code = exit_codes[rank]
        was_killed = code < 0 and code != -signal.SIGTERM
        return 0 if was_killed or code in MEANINGS else 1 if code == 2 else 2 if code else 3

    return min(exit_codes, key=weight)


def _start(arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A rank in a session of its own: Ctrl-C on a terminal comes to it from us alone."""
    command = [sys.executable, "-m", "train", "run", *arguments]
    return subprocess.Popen(command, env=os.environ | environment, start_new_session=True)


def _await_end(ranks: Sequence[subprocess.Popen[bytes]], signals: Signals) -> dict[int, int]:
    """The exit code of every rank that ended by itself, in the order in which that was seen; none is left."""
    ended: dict[int, int] = {}
    passed_on, end_s = 0, float("inf")
    while len(ended) < len(ranks) and time.monotonic() < end_s:
        time.sleep(POLL_S)
        for rank, process in enumerate(ranks):
            if rank not in ended and (code := process.poll()) is not None:
                ended[rank] = code
        received = signals.received[passed_on:]
        if any(ended.values()) and end_s == float("inf"):
            end_s = time.monotonic() + GRACE_S
            received = [*received, signal.SIGTERM]
        passed_on = len(signals.received)
        for number in received:
            for process in ranks:
                process.send_signal(number)
    for rank, process in enumerate(ranks):
        if rank not in ended:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return ended
