"""One rank of a test: carries out the runs of a JSON file, one after another, and writes down what it reads.

Of a run may be told which one it begins from, and what memory runs out of.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import train.run
from shared.config import structure
from tests.recording import recording
from tests.shortages import Fault, running_out
from train.collective import barrier, leave
from train.config import RunConfig
from train.preflight import prepare
from train.recovery import StopRequest
from train.request import RunRequest
from train.run import execute


def main(jobs_path: str) -> None:
    stop = StopRequest()
    dist.init_process_group("gloo")
    train.run.measured_peak_flops = lambda device, dtype: 1e9  # no test here looks at mfu, and it takes a second
    for job in json.loads(Path(jobs_path).read_text()):
        config = structure(job["config"], RunConfig, "job")
        request = RunRequest(Path(job["tokens"]), Path(job["run"]), config, job["stop_step"], **beginning(job))
        prepared = prepare(request, dist.get_world_size())
        fault = Fault(**job["fault"]) if job.get("fault") else None
        barrier()
        with recording(Path(job["records"])), running_out(fault):
            execute(prepared, torch.device("cpu"), stop)
    dist.destroy_process_group()
    leave(0)


def beginning(job: dict[str, Any]) -> dict[str, Any]:
    """What a request says of the run that a job begins from, if it begins from one."""
    if "begin_from" not in job:
        return {}
    return {"begin_from": Path(job["begin_from"]), "reset_optimizer": job["reset_optimizer"]}


if __name__ == "__main__":
    main(sys.argv[1])
