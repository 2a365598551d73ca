"""Starts a run's processes on this machine, as torchrun would, after all that can be checked was checked."""

import os
import sys
import uuid
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

INTERRUPTED = 130


def default_processes() -> int:
    """The GPUs of this machine, or 2 where there is none."""
    return torch.cuda.device_count() or 2


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `python -m train run` with `arguments` on that many ranks; return the exit code.

    0 = done, 2 = a mistake that a rank has told, 130 = asked to stop, and saved, 1 = a rank failed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // num_processes, 1)))
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
            return 2
        print(f"error: rank {rank} ended with exit code {failure.exitcode}: see above for its message", file=sys.stderr)
        return 1
    return 0
