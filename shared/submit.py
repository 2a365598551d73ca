"""A job script shown, or given to its batch system, after what it asks for was shown."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from shared.batch import DIALECTS, Job, System
from shared.duration import hms, walltime
from shared.errors import ConfigError, UserError
from shared.job_script import script
from shared.site import Site
from shared.slices import LOG_NAME, SCRIPT_NAME, Chain
from shared.storage import write_file
from shared.terminal import counted, safe_text

PATIENCE_S = 60.0
"""For the answer of a batch system."""


def walltime_of(system: System, given: str | None, site: Site) -> float:
    """Seconds of a slice, by the command line or else the site; without end on a machine of one's own.

    Raises: ConfigError if a batch system would have to guess.
    """
    text = given or site.walltime
    if text is None:
        if system == "local":
            return float("inf")
        raise ConfigError("walltime is not given: --walltime 8:00:00, or walltime in the site file, is wanted")
    if (seconds := walltime(text)) <= 0:
        raise ConfigError(f"walltime {text} is no time: more than 0 is wanted")
    return seconds


def name_of(path: Path) -> str:
    """What a batch system may call a job on `path`: letters, digits and few signs, not too many.

    >>> name_of(Path("../runs/1b (second)")), name_of(Path("first"))
    ('a-1b--second-', 'first')
    """
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in path.name)
    return (name if name[:1].isalpha() else f"a-{name}")[:15]


def give(system: System, job: Job, site: tuple[Site, str], rows: Sequence[tuple[str, str]], is_submitted: bool) -> None:
    """Tell on stderr what was resolved, `rows` first; then print the script, or submit it."""
    rows = [*rows, *_resolved(system, job, *site)]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {safe_text(value)}", file=sys.stderr)
    text = script(system, job, site[0], Path.cwd())
    if is_submitted:
        print(submit(system, job.directory, text, unit=job.unit))
    else:
        print(text, end="")
        print("not submitted: --submit does it, or save this script and submit it yourself", file=sys.stderr)


def _resolved(system: System, job: Job, site: Site, origin: str) -> list[tuple[str, str]]:
    many = f"an array of {counted(job.tasks, 'task')}" if job.tasks else counted(job.nodes, "node")
    gpus = f" with {counted(job.gpus, 'GPU')}{' each' if job.nodes > 1 else ''}" if job.gpus else ""
    length = "as long as it takes" if job.walltime_s == float("inf") else f"slices of {hms(job.walltime_s)}"
    cpus = str(site.cpus) if site.cpus else "what the system gives, often one: cpus in the site file asks for more"
    told = {"account": site.account, "queue": site.queue, "cpus": cpus, "modules": " ".join(site.modules)}
    if system == "local":
        told = {}
    return [
        ("system", f"{system}, {many}{gpus}, {length}"),
        ("site", origin),
        *((name, value) for name, value in told.items() if value),
        *(("directive", line) for line in site.directives if system != "local"),
        ("chain", str(job.directory)),
    ]


def submit(system: System, directory: Path, text: str, unit: str) -> str:
    """Begin a chain in its directory with this script; what to tell of it.

    Raises: ConfigError if a chain there has not ended. UserError if the batch system does not take the job.
    """
    Chain(directory, unit).renew(time.time())
    write_file(directory / SCRIPT_NAME, [text.encode()])
    log = safe_text(str(directory / LOG_NAME))
    command = (
        [*DIALECTS[system].submit.split(" ")[:1], SCRIPT_NAME] if system != "local" else ["/bin/bash", SCRIPT_NAME]
    )
    if system == "local":
        process = subprocess.Popen(
            command,
            cwd=directory,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return f"started as process {process.pid} (`kill` asks it to stop): tail -f {log}"
    said = f"`{' '.join(command)}`"
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{said} did not take the job ({error}): is {system} on this machine?") from None
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(
            f"{said} did not take the job ({safe_text(problem)}): mend that, {SCRIPT_NAME} is in {directory}"
        )
    return f"submitted: {safe_text(done.stdout.strip())}, its output: {log}"
