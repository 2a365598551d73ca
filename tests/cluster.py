"""A small batch system of this machine: stand-ins for the commands of Slurm and PBS that run their jobs for real.

Jobs run one after the other, from a copy of their script, as batch systems do it; at their walltime everything that has
the job's mark in its environment is killed, whatever session it is in.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shared.duration import seconds

STAND_IN = Path(__file__).with_name("cluster_command.py")
COMMANDS = ("sbatch", "scancel", "srun", "scontrol", "qsub", "qdel", "qstat", "pbsdsh")
KILL_S = 3.0
"""Between SIGTERM and SIGKILL at a walltime."""
MARK = "STAND_IN_JOB"
"""In the environment of all processes of a job: its name and its cluster, for another may have a job of that name."""


class Cluster:
    """A batch system whose spool is `directory`."""

    def __init__(self, directory: Path, system: str) -> None:
        self.spool, self.system, self.ran = directory, system, list[str]()
        self.task = 0
        """That runs now."""
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        for name in COMMANDS:
            (self.bin / name).write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} {directory} {name} "$@"\n')
            (self.bin / name).chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """Of who submits jobs here."""
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def waiting(self) -> list[dict]:
        """The jobs that are to run, in the order of their names."""
        jobs = [json.loads(path.read_text()) for path in self.spool.glob("*.job")]
        return sorted((job for job in jobs if job["id"] not in self.ran), key=lambda job: int(job["number"]))

    def drain(self, watch: Callable[[str, int, float], None] = lambda *_: None, most: int = 20) -> None:
        """Run jobs, as they come, until there is none; `watch` is called all the time with number, pid and age."""
        while jobs := self.waiting():
            assert len(self.ran) < most, "the chain does not end"
            assert all(name in self.ran for name in jobs[0]["after"]), "waits for what has not been"
            self.ran.append(jobs[0]["id"])
            for task in range(1, (jobs[0]["tasks"] or 1) + 1):
                self._run(jobs[0], task, watch)

    def _run(self, job: dict, task: int, watch: Callable[[str, int, float], None]) -> None:
        self.task = task
        script = self.spool / f"script-{job['number']}"
        script.write_text(job["script"])
        walltime_s = seconds(re.search(r"(?:--time=|-l walltime=)(\S+)", job["script"])[1])
        notice = re.search(r"--signal=B:USR1@(\d+)", job["script"])
        began, environment = time.time(), {**self.environment, MARK: self._mark(job["id"])}
        if self.system == "slurm":
            environment |= {"SLURM_JOB_ID": job["number"], "SLURM_JOB_END_TIME": str(int(began + walltime_s))}
            environment |= {"SLURM_NNODES": re.search(r"--nodes=(\d+)", job["script"])[1]}
            if job["tasks"]:
                environment |= {"SLURM_ARRAY_JOB_ID": job["number"], "SLURM_ARRAY_TASK_ID": str(task)}
        else:
            (self.spool / "qstat.txt").write_text(
                f"Job Id: {job['id']}\n    Resource_List.walltime = {int(walltime_s)}\n"
                f"    stime = {time.strftime('%a %b %d %H:%M:%S %Y', time.localtime(began))}\n"
            )
            environment |= {"PBS_JOBID": job["id"], "STAND_IN_NODES": re.search(r"select=(\d+)", job["script"])[1]}
            if job["tasks"]:
                environment |= {"PBS_ARRAY_ID": job["id"], "PBS_ARRAY_INDEX": str(task)}
        out = (self.spool / f"out-{job['number']}").open("ab")
        process = subprocess.Popen(
            ["/bin/bash", script], env=environment, cwd=self.spool, stdout=out, stderr=out, start_new_session=True
        )
        is_told = False
        while process.poll() is None:
            age_s = time.time() - began
            if notice and not is_told and age_s > walltime_s - int(notice[1]):
                process.send_signal(signal.SIGUSR1)
                is_told = True
            if age_s > walltime_s:
                self.kill(job["id"], signal.SIGTERM)
                time.sleep(KILL_S)
                self.kill(job["id"], signal.SIGKILL)
            watch(job["number"], process.pid, age_s)
            time.sleep(0.02)
        self.kill(job["id"], signal.SIGKILL)
        out.close()

    def _mark(self, job: str) -> str:
        return f"{self.spool} {job}"

    def kill(self, job: str, number: signal.Signals) -> None:
        """Everything of a job, as the kernel does when a node is lost."""
        for pid in self.processes(job):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def processes(self, job: str) -> list[int]:
        """All processes of a job."""
        return self.ranks(job, b"")

    def ranks(self, job: str, words: bytes = b"train\0run\0") -> list[int]:
        """Those processes of a job that have these words in their command line, but no agent of torchrun."""
        found, mark = [], f"{MARK}={self._mark(job)}\0".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                command = path.with_name("cmdline").read_bytes()
                is_meant = not words or (words in command and b"torch.distributed.run" not in command)
                if is_meant and mark in path.read_bytes() + b"\0":
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found
