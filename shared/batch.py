"""What is asked of a batch system, and how Slurm, PBS and a machine without either are asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from shared.duration import hms
from shared.site import Site

System = Literal["slurm", "pbs", "local"]
LONGEST_NOTICE_S = 600


@dataclass(frozen=True)
class Job:
    """What is asked for."""

    name: str
    directory: Path
    """Of the chain."""
    walltime_s: float
    program: Sequence[str]
    """Before `slice`, as in python -m train."""
    target: Path
    """What the work is on: a run, a dataset."""
    unit: str
    """What counts how far it is."""
    command: str
    """Shell that every node or task runs, with $id of the job, $head and $port to meet at or the $task."""
    origin: str
    """The command line that made this."""
    nodes: int = 1
    gpus: int = 0
    """Of each node."""
    tasks: int | None = None
    """Of a job array; None: no array."""
    environment: Sequence[tuple[str, str]] = ()

    @property
    def notice_s(self) -> int:
        """How long before its end a job is told of it, and how long it may then take to save."""
        return notice_s(self.walltime_s)


def notice_s(walltime_s: float) -> int:
    """How long before its end a job of that length is told of it, and how long it may then take to save.

    >>> notice_s(28_800), notice_s(40)
    (600, 4)
    """
    return min(LONGEST_NOTICE_S, int(walltime_s) // 10)


class Dialect(Protocol):
    """How a batch system is spoken to, in a script's lines."""

    job_id: str
    task_id: str
    submit: str
    """Before the script: prints the name of a job that begins when $id has ended."""
    cancel: str

    def header(self, job: Job, site: Site) -> list[str]:
        """What the batch system reads."""

    def spawn(self, site: Site) -> str:
        """Before a command that every node is to run once."""


class Slurm:
    """sbatch."""

    job_id, task_id = "${SLURM_ARRAY_JOB_ID:-${SLURM_JOB_ID-}}", "$SLURM_ARRAY_TASK_ID"
    submit = 'sbatch --parsable --dependency=afterany:"$id"'
    cancel = "scancel"

    def header(self, job: Job, site: Site) -> list[str]:
        """No requeue: a chain goes on by its next job, and by one way alone."""
        lines = [
            f"--job-name={job.name}",
            f"--nodes={job.nodes}",
            "--ntasks-per-node=1",
            f"--time={hms(job.walltime_s)}",
            "--no-requeue",
        ]
        if job.gpus:
            lines.append(f"--gpus-per-node={job.gpus}")
        if site.cpus:
            lines.append(f"--cpus-per-task={site.cpus}")
        lines.append(f"--array=1-{job.tasks}" if job.tasks else f"--signal=B:USR1@{job.notice_s}")
        lines += [f"--account={site.account}"] if site.account else []
        lines += [f"--partition={site.queue}"] if site.queue else []
        return [f"#SBATCH {line}" for line in [*lines, *site.directives]]

    def spawn(self, site: Site) -> str:
        """Since Slurm 22.05 srun does not take the CPUs of a task over from sbatch: it would give it one."""
        return f"srun --cpus-per-task={site.cpus}" if site.cpus else "srun"


class Pbs:
    """qsub of OpenPBS and PBS Pro."""

    job_id, task_id = "${PBS_ARRAY_ID:-${PBS_JOBID-}}", "$PBS_ARRAY_INDEX"
    submit = 'qsub -W depend=afterany:"$id"'
    cancel = "qdel"

    def header(self, job: Job, site: Site) -> list[str]:
        """Not to be run again (-r n): a chain goes on by its next job; an array has to be one that may."""
        chunk = [f"select={job.nodes}"]
        chunk += [f"ncpus={site.cpus}"] if site.cpus else []
        chunk += [f"ngpus={job.gpus}"] if job.gpus else []
        chunk += ["mpiprocs=1", *([site.select] if site.select else [])]
        lines = [
            f"-N {job.name}",
            f"-l {':'.join(chunk)}",
            *(["-l place=scatter"] if job.nodes > 1 else []),
            f"-l walltime={hms(job.walltime_s)}",
            "-j oe",
            *([f"-J 1-{job.tasks}", "-r y"] if job.tasks else ["-r n"]),
        ]
        lines += [f"-A {site.account}"] if site.account else []
        lines += [f"-q {site.queue}"] if site.queue else []
        return [f"#PBS {line}" for line in [*lines, *site.directives]]

    def spawn(self, site: Site) -> str:
        """A process of the job on each of its nodes."""
        del site
        return "pbsdsh --"


class Local:
    """This machine: slices one after the other, by the script itself."""

    job_id, task_id = "$(date +%s)-$$", "1"
    submit = cancel = ""

    def header(self, job: Job, site: Site) -> list[str]:
        """Nothing: nobody reads it."""
        del job, site
        return []

    def spawn(self, site: Site) -> str:
        """Nothing: there is one node."""
        del site
        return ""


DIALECTS: dict[System, Dialect] = {"slurm": Slurm(), "pbs": Pbs(), "local": Local()}
