"""What a run would meet on this machine: software, cores, memory, limits. Nothing here needs torch."""

import os
import platform
import re
import resource
import shutil
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from train.finding import Finding, finding

GIB = 1 << 30
MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")
CGROUP = Path("/sys/fs/cgroup")
LEAST_FILES = 1024
LEAST_PROCESSES = 1024
LEAST_SHARED = {False: 64 * MIB, True: GIB}
"""Of /dev/shm, without and with GPUs, through which NCCL speaks."""
LEAST_FREE = 2 * GIB
FASTER = ("gigatoken", "gigabpe")


def examine_machine(num_processes: int, num_gpus: int) -> list[Finding]:
    """Everything that is known without a path."""
    return [_software(), _cores(num_processes, num_gpus), _memory(), _shared_memory(num_gpus), *_limits(num_gpus)]


def _software() -> Finding:
    names = {re.split("[^a-z0-9]", requirement)[0]: requirement for requirement in _requirements()}
    found = {name: _version(name) for name in (*names, *FASTER)}
    shown = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    old = [requirement for name, requirement in names.items() if not _is_enough(found[name], requirement)]
    slow = [name for name in FASTER if not found[name]]
    return finding(
        "software",
        f"python {platform.python_version()}, {shown}",
        problem=f"install {', '.join(old)} (`make setup`)" if old else "",
        warning=f"{' and '.join(slow)} would make tokenizing faster: pip install 'argonne[fast]'" if slow else "",
    )


def _requirements() -> list[str]:
    """What the project depends on, from its own file or, where it is installed, from its metadata."""
    path = Path(__file__).parents[1] / "pyproject.toml"
    if path.is_file():
        with open(path, "rb") as file:
            return list(tomllib.load(file)["project"]["dependencies"])
    return [line for line in metadata.requires("argonne") or [] if "extra ==" not in line]


def _version(name: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return ""


def _is_enough(version: str, requirement: str) -> bool:
    """Whether a version is there and not older than what is wanted.

    >>> _is_enough("2.13.0+cpu", "torch>=2.10"), _is_enough("2.9.1", "torch>=2.10"), _is_enough("", "torch>=2.10")
    (True, False, False)
    """
    return bool(version) and _numbers(version) >= _numbers(requirement.partition(">=")[2])


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]


def _cores(num_processes: int, num_gpus: int) -> Finding:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(allowed)
    found = f"{quota:g} of {os.cpu_count()} on {platform.node()}" if quota < (os.cpu_count() or 1) else f"{allowed}"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    said = f", OMP_NUM_THREADS={threads}" if threads else ""
    few = f"{num_processes} processes share them: give fewer with NPROC, or ask the cluster for more cores"
    many = f"{threads} threads for each of {num_processes} processes are too many: unset it"
    is_crowded = threads.isdecimal() and num_gpus == 0 and int(threads) * num_processes > quota
    return finding("cores", found + said, warning=few if quota < num_processes else many if is_crowded else "")


def _quota(allowed: int) -> float:
    """Cores that a container may use at a time."""
    with suppress(OSError, ValueError):
        limit, period = (CGROUP / "cpu.max").read_text().split()
        return min(allowed, int(limit) / int(period))
    return allowed


def _memory() -> Finding:
    total, free = memory()
    return finding(
        "memory",
        f"{total / GIB:.1f} GiB, {free / GIB:.1f} free",
        warning="end what else runs here, or ask the cluster for more" if free < LEAST_FREE else "",
    )


def memory() -> tuple[int, int]:
    """Bytes of this machine, or of the container if that has less; and how many are free."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    with suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    with suppress(OSError, ValueError):
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        total, free = min(total, limit), min(free, limit - used)
    return total, free


def _shared_memory(num_gpus: int) -> Finding:
    wanted = LEAST_SHARED[num_gpus > 0]
    if not SHARED_MEMORY.is_dir():
        return finding("shared memory", f"no {SHARED_MEMORY}", warning="mount a tmpfs there")
    free = shutil.disk_usage(SHARED_MEMORY).free
    return finding(
        "shared memory",
        f"{free / MIB:,.0f} MiB free in {SHARED_MEMORY}",
        warning=f"{wanted / MIB:,.0f} are wanted: `docker run --shm-size 2g`, or delete what lies there"
        if free < wanted
        else "",
    )


def _limits(num_gpus: int) -> list[Finding]:
    """Each limit of this process that is below what a run wants."""
    wanted = {
        "open files": (resource.RLIMIT_NOFILE, LEAST_FILES, "-n"),
        "processes": (resource.RLIMIT_NPROC, LEAST_PROCESSES, "-u"),
        **({"locked memory": (resource.RLIMIT_MEMLOCK, GIB, "-l")} if num_gpus else {}),
    }
    low = []
    for name, (number, least, option) in wanted.items():
        soft, hard = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY and soft < least:
            shown = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
            low.append(f"{soft:,} {name}, raise them with `ulimit {option} {shown}`")
    found = f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} open files"
    return [finding("limits", found, warning="; ".join(low))]


def file_size_limit() -> int | None:
    """Bytes that a file of this process may have; None if any."""
    return _soft(resource.RLIMIT_FSIZE)


def address_space_limit() -> int | None:
    """Bytes that this process may map; None if any."""
    return _soft(resource.RLIMIT_AS)


def _soft(number: int) -> int | None:
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft
