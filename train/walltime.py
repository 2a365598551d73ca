"""When a run's job ends: what the user says, or what Slurm or PBS know of the job that this process is in."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.duration import is_duration, seconds
from shared.errors import ConfigError, UserError

PATIENCE_S = 30.0
"""For the answer of a batch system."""


@dataclass(frozen=True)
class JobEnd:
    """When a job ends, and who says so."""

    at_s: float
    """Seconds since 1970."""
    source: str

    def __str__(self) -> str:
        return f"{datetime.fromtimestamp(self.at_s).isoformat(' ', 'seconds')} ({self.source})"


def job_end(deadline: str | None, environment: Mapping[str, str]) -> JobEnd | None:
    """When the job ends: the deadline that was given, else what the batch system says; None if there is none.

    Raises: ConfigError if the deadline is none. UserError if the batch system does not say when its job ends.
    """
    if deadline is not None:
        return JobEnd(parse_deadline(deadline, time.time()), "--deadline")
    if end := environment.get("SLURM_JOB_END_TIME"):
        return _understood("SLURM_JOB_END_TIME", float, end)
    for variable, command, parse in (
        ("SLURM_JOB_ID", ("scontrol", "show", "job"), parse_scontrol),
        ("PBS_JOBID", ("qstat", "-f"), parse_qstat),
    ):
        if job := environment.get(variable):
            return _understood(" ".join(command), parse, _answer((*command, job)))
    return None


def _understood(source: str, parse: Callable[[str], float | None], text: str) -> JobEnd | None:
    try:
        at_s = parse(text)
        end = None if at_s is None else JobEnd(at_s, source)
        str(end)  # a time that cannot be shown is none
    except (ValueError, OverflowError, OSError) as error:
        raise UserError(f"{source} does not say when the job ends ({error}): none is known; give --deadline") from None
    return end


def _answer(command: tuple[str, ...]) -> str:
    said = f"`{' '.join(command)}`"
    try:
        plain = os.environ | {"LC_ALL": "C"}  # names of days and months are English
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=plain)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{said} does not say when the job ends ({error}): none is known; give --deadline") from None
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{said} does not say when the job ends ({problem}): none is known; give --deadline")
    return done.stdout


def parse_deadline(text: str, now_s: float) -> float:
    """Seconds since 1970 of a time (ISO 8601, of this machine's zone if it has none) or a duration from `now_s` on.

    >>> parse_deadline("8:00:00", 1000.0), parse_deadline("1-00:00:30", 0.0), parse_deadline("1970-01-02T00:00Z", 5.0)
    (29800.0, 86430.0, 86400.0)

    Raises: ConfigError if it is neither.
    """
    if is_duration(text):
        return now_s + seconds(text)
    try:
        if "T" not in text:  # a mere date is no time
            raise ValueError
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ConfigError(
            f"deadline {text!r} is not a time: 2026-11-30T18:00:00 or hours:minutes:seconds from now is wanted"
        ) from None


def fixed(deadline: str, now_s: float) -> str:
    """The same deadline as a time, which stays when a process that is told of it starts later."""
    return datetime.fromtimestamp(parse_deadline(deadline, now_s), UTC).isoformat()


def parse_scontrol(text: str) -> float | None:
    """Seconds since 1970 of the end of a job in the words of `scontrol show job`; None if it has no limit.

    Raises: UserError if it does not say.
    """
    end = _field(r"\bEndTime=(\S+)", text, "scontrol show job", "EndTime")
    return None if end in ("Unknown", "UNLIMITED", "NONE", "None", "N/A") else datetime.fromisoformat(end).timestamp()


def parse_qstat(text: str) -> float | None:
    """Seconds since 1970 of the end of a job in the words of `qstat -f`; None if it has no limit.

    Its start is OpenPBS' stime or Torque's start_time; else etime, when it could have started first.

    Raises: UserError if it says when the job ends at the latest, but not when it started.
    """
    text = re.sub(r"\n\t", "", text)  # long values go on in the next line
    walltime = re.search(r"^\s*Resource_List\.walltime = (\S+)", text, re.MULTILINE)
    if walltime is None or walltime[1].lower() in ("unlimited", "infinite"):
        return None
    starts = (re.search(rf"^\s*{name} = (.+)$", text, re.MULTILINE) for name in ("stime", "start_time"))
    known = next((start[1] for start in starts if start), None)
    start = known or _field(r"(?m)^\s*etime = (.+)$", text, "qstat -f", "stime")
    began = datetime.strptime(start.strip(), "%a %b %d %H:%M:%S %Y")  # of this machine's zone
    return began.timestamp() + seconds(walltime[1])


def _field(pattern: str, text: str, command: str, name: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise UserError(f"`{command}` says no {name} of the job: no deadline is known; give --deadline")
    return found[1]
