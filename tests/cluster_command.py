"""One command of the batch system of tests/cluster.py: python cluster_command.py SPOOL NAME ARGUMENTS..."""

import json
import os
import re
import signal
import subprocess
import sys
from itertools import dropwhile
from pathlib import Path


def submit(spool: Path, system: str, arguments: list[str]) -> int:
    """Take a job, as `sbatch` and `qsub` do."""
    if (spool / "full").exists():
        print("error: QOSMaxSubmitJobPerUserLimit", file=sys.stderr)
        return 1
    text = Path(arguments[-1]).read_text()
    after = [name for word in arguments for name in re.findall(r"afterany:(\S+)", word)]
    array = re.search(r"^#(?:SBATCH --array=|PBS -J )1-(\d+)$", text, re.MULTILINE)
    number = str(len(list(spool.glob("*.job"))) + 101)
    name = number if system == "slurm" else f"{number}{'[]' if array else ''}.server"
    job = {"id": name, "number": number, "after": after, "tasks": array and int(array[1]), "script": text}
    (spool / f"{number}.job").write_text(json.dumps(job))
    print(name)
    return 0


def cancel(spool: Path, name: str) -> int:
    """As `scancel` and `qdel` of a job that waits."""
    path = spool / f"{re.match(r'[0-9]+', name)[0]}.job"
    path.rename(path.with_suffix(".cancelled"))
    return 0


def everywhere(command: list[str]) -> int:
    """Run a command once for each node, and pass signals on, as `srun` does."""
    count = int(os.environ.get("SLURM_NNODES") or os.environ["STAND_IN_NODES"])
    tasks = [subprocess.Popen(command) for _ in range(count)]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
    return max(abs(task.wait()) for task in tasks)


def main() -> int:
    spool, name, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if name in ("sbatch", "qsub"):
        return submit(spool, "slurm" if name == "sbatch" else "pbs", arguments)
    if name in ("scancel", "qdel"):
        return cancel(spool, arguments[-1])
    if name in ("srun", "pbsdsh"):
        return everywhere(list(dropwhile(lambda word: word.startswith("--"), arguments)))
    if name == "qstat":
        print((spool / "qstat.txt").read_text())
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
