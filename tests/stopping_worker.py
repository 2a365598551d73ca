"""One rank of a test: runs that one of the ranks is asked to stop at a place, each then continued to its end."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from shared.config import structure
from tests.faulty_rank import PLACES
from train import microbatch
from train.checkpoint import Progress
from train.collective import barrier, gather, leave, rank
from train.config import RunConfig
from train.outcome import read_state
from train.preflight import prepare
from train.recovery import StopRequest
from train.request import RunRequest
from train.run import execute

PLACES = {**PLACES, "trial": (microbatch, "try_out")}


@contextmanager
def signalled(place: str, number: int, call: int) -> Iterator[None]:
    """This process gets a signal at that call of a function."""
    owner, name = PLACES[place]
    function, calls = getattr(owner, name), 0

    def changed(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(number)
        return function(*arguments, **named)

    setattr(owner, name, changed)
    try:
        yield
    finally:
        setattr(owner, name, function)


def train(request: RunRequest) -> Progress:
    """As a rank does; no rank begins to write before all have looked at what is there."""
    prepared = prepare(request, 2)
    barrier()
    return execute(prepared, torch.device("cpu"), StopRequest())


def main(jobs_path: str) -> None:
    dist.init_process_group("gloo")
    for job in json.loads(Path(jobs_path).read_text()):
        run = Path(job["run"])
        request = RunRequest(Path(job["tokens"]), run, structure(job["config"], RunConfig, "job"))
        if rank() == job["rank"]:
            with signalled(job["place"], job["number"], job["call"]):
                stopped = train(request)
        else:
            stopped = train(request)
        if rank() == 0:
            found = {"steps": [p.step for p in gather(stopped)], "state": read_state(run)}
            (run.parent / f"{run.name}.json").write_text(json.dumps(found))
        else:
            gather(stopped)
        barrier()
        train(request)
    dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
