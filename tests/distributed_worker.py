"""One rank of a test: carries out the runs of a JSON file, one after another, in one process group."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from shared.config import structure
from train.collective import barrier, leave
from train.config import RunConfig
from train.preflight import prepare
from train.recovery import StopRequest
from train.request import RunRequest
from train.run import execute


def main(jobs_path: str) -> None:
    stop = StopRequest()
    dist.init_process_group("gloo")
    for job in json.loads(Path(jobs_path).read_text()):
        config = structure(job["config"], RunConfig, "job")
        request = RunRequest(Path(job["tokens"]), Path(job["run"]), config, job["stop_step"])
        prepared = prepare(request, dist.get_world_size())
        barrier()
        execute(prepared, torch.device("cpu"), stop)
    dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
