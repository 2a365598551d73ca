"""One rank of a test: carries out runs in which memory runs out, one after another, in one process group."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import train.run
from shared.config import structure
from shared.errors import UserError
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
        request = RunRequest(Path(job["tokens"]), Path(job["run"]), structure(job["config"], RunConfig, "job"))
        fault = Fault(**job["fault"]) if job["fault"] else None
        prepared = prepare(request, dist.get_world_size())
        barrier()
        with running_out(fault):
            try:
                execute(prepared, torch.device("cpu"), stop)
            except UserError as error:
                (request.run / f"rank{dist.get_rank()}.error").write_text(str(error))
    dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
