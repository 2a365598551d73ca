"""Starts a run's processes on this machine, as torchrun would, after all that can be checked was checked."""

import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shared.errors import UserError
from shared.storage import write_file

INTERRUPTED = 130
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set for each rank: where it leaves its last words


def default_processes() -> int:
    """The GPUs of this machine, or 2 where there is none."""
    return torch.cuda.device_count() or 2


def leave_message(error: UserError) -> None:
    """Leave a rank's message for `launch`, which says it once however many ranks have it.

    Raises: `error`, if nobody has said where to leave it.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None:
        raise error
    write_file(Path(path), [json.dumps({"message": str(error), "timestamp": int(time.time())}).encode()])


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m train run` with `arguments` on that many ranks; return the exit code.

    0 = done, 2 = a mistake that a rank has found, 130 = asked to stop, and saved, 1 = a rank failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
    for name in ("multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").disabled = True  # we say what happened, in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "train", "run", *arguments)
    except SignalException as signal:
        print(f"stopped by {signal.sigval.name}: run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == 2:
            print(f"error: {failure.message}", file=sys.stderr)
            return 2
        print(f"error: rank {rank} ended with exit code {failure.exitcode}: see above for its message", file=sys.stderr)
        return 1
    return 0
