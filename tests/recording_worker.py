"""One rank of a test: carries out the runs of a JSON file, one after another, and writes down what it reads."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import train.run
from shared.config import structure
from tests.recording import recording
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
        prepared = prepare(
            RunRequest(Path(job["tokens"]), Path(job["run"]), config, job["stop_step"]), dist.get_world_size()
        )
        barrier()
        with recording(Path(job["records"])):
            execute(prepared, torch.device("cpu"), stop)
    dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
