"""The shards of a build as tasks on a Ray cluster, of which any node may die at any moment.

A task writes one shard into the directory that all nodes share (`on_node.py`). It returns the shard's description and
what it had to say: no text and no ids go through Ray. Nothing is tried again by Ray itself: a death is counted and told
as in `workers.py`, and the shard given to another node. Tasks end with their build, however it ends; where Ray is slow
to see to that, they have lost the directory (`claims.py`) as soon as another build has it.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from preprocess.attempts import Attempts
from preprocess.config import num_cores
from preprocess.job import Done_co, Work
from preprocess.on_node import Mistake, Order, Result, software, write_on_node
from preprocess.progress import Progress
from shared.claims import held
from shared.errors import UserError
from shared.terminal import safe_text

AT_ONCE = 4096  # tasks that Ray knows of: it takes time to look through them
CONNECT_S = 5.0
LOOK_S = 5.0  # between two looks at a cluster on which nothing ends
QUIET = {  # read by Ray when it is imported
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # the first one is told, then all tasks are ended
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray warns of does not concern us
    "RAY_USAGE_STATS_ENABLED": "0",  # a cluster of our own tells nobody
}
PROMPT = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "5"}  # tries for 16 s, not for minutes
NOT_INSTALLED = "The remote function failed to import on the worker"  # Ray's words
DEATHS = {
    "NodeDiedError": "its node died",
    "OutOfMemoryError": "out of memory",
    "WorkerCrashedError": "its process died",
}


def write_on_ray(job: Work[Done_co], numbers: Sequence[int], address: str, progress: Progress) -> dict[int, Done_co]:
    """Write the shards on every CPU of the Ray cluster at `address`, one thread each.

    Raises: UserError if there is no cluster; as soon as a task tells one; or at the end if a shard ended its worker
    `TRIES` times.
    """
    attempts, done, said = Attempts(job.plan, numbers), dict[int, Done_co](), set[str]()
    with _cluster(address) as ray:
        order = [ray.put(Order(job.absolute(), held(), software()))]  # in a list it is not fetched
        write = ray.remote(num_cpus=1, max_retries=0)(write_on_node)
        running: dict[Any, int] = {}
        while attempts.waiting or running:
            while attempts.waiting and len(running) < AT_ONCE:
                number = attempts.waiting.popleft()
                running[write.remote(order, number)] = number
            for task in _ended(ray, [*running]):
                number, result = running.pop(task), _result(ray, task)
                if isinstance(result, str):
                    attempts.died(number, result)
                    continue
                done[number], lines, counts = result
                for line in lines:
                    if line not in said:  # of its engine, every process says the same
                        print(line, flush=True)
                    said.add(line)
                progress.add(*counts)
                progress.finish_shard()
    attempts.finish()
    return done


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address` or to one of its own; afterwards no task runs.

    Raises: UserError if there is none.
    """
    is_own = address == "local"
    for name, value in (QUIET if is_own else QUIET | PROMPT).items():
        os.environ.setdefault(name, value)
    import ray

    options = {"num_cpus": num_cores(), "include_dashboard": False} if is_own else {}
    try:
        _check_listens(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"the Ray cluster at {safe_text(address)} cannot be used ({_first_line(error)}): start one with "
            "`ray start`, or give --ray local"
        ) from None
    try:
        print(f"writing on a Ray cluster of {_size(ray)}", flush=True)
        yield ray
    finally:
        ray.shutdown()


def _check_listens(address: str) -> None:
    """Raises: OSError if nothing listens at `address`: Ray would take its time to find that out."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _size(ray: Any) -> str:
    cpus, nodes = int(ray.cluster_resources().get("CPU", 0)), sum(node["Alive"] for node in ray.nodes())
    return f"{cpus:,} CPU{'s' * (cpus != 1)} and {nodes:,} node{'s' * (nodes != 1)}"


def _ended(ray: Any, tasks: list[Any]) -> list[Any]:
    """The tasks that have ended, at least one: waited for, and if the cluster has lost its last CPU that is told."""
    has_told = False
    while not ray.wait(tasks, timeout=LOOK_S)[0]:
        if not has_told and ray.cluster_resources().get("CPU", 0) < 1:
            print("the Ray cluster has no CPU: waiting for a node that has", flush=True)
            has_told = True
    ended: list[Any] = ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]
    return ended


def _result(ray: Any, task: Any) -> Result | str:
    """What `task` returned, or why it died.

    Raises: UserError if it tells one.
    """
    try:
        result: Result | Mistake = ray.get(task)
    except ray.exceptions.RayTaskError as error:
        match error.cause:
            case MemoryError():
                return "out of memory"
            case ray.exceptions.RayError() as failure:
                return why(failure)
        if NOT_INSTALLED in str(error):
            reason = safe_text(str(error).strip().splitlines()[-1])
            raise UserError(f"a node cannot run this code ({reason}): install the same argonne on every node") from None
        raise RuntimeError(f"a task failed:\n{error}") from None
    except ray.exceptions.RayError as error:
        return why(error)
    if isinstance(result, Mistake):
        raise UserError(result.line)
    return result


def why(error: Exception) -> str:
    """The reason of a death as Ray tells it, in a few words where it is a common one."""
    return DEATHS.get(type(error).__name__) or _first_line(error)


def _first_line(error: Exception) -> str:
    return safe_text((str(error).splitlines() or [type(error).__name__])[0])
