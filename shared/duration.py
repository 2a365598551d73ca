"""Durations as Slurm and PBS write them: [days-]hours:minutes:seconds."""

import re

from shared.errors import ConfigError


def is_duration(text: str) -> bool:
    """Whether it is [days-]hours:minutes:seconds."""
    return re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", text) is not None


def walltime(text: str) -> float:
    """Seconds of a job's hours:minutes or [days-]hours:minutes:seconds.

    >>> walltime("8:00"), walltime("1-00:00:30")
    (28800.0, 86430.0)

    Raises: ConfigError if it is neither.
    """
    text = f"{text}:00" if re.fullmatch(r"\d+:\d\d", text) else text
    if not is_duration(text):
        raise ConfigError(f"walltime {text!r} is no duration: hours:minutes or hours:minutes:seconds is wanted")
    return seconds(text)


def seconds(duration: str) -> float:
    """Of [[[days-]hours:]minutes:]seconds.

    >>> seconds("100:00:00"), seconds("2-01:00:00"), seconds("90"), seconds("01:30")
    (360000.0, 176400.0, 90.0, 90.0)
    """
    days, _, clock = duration.rpartition("-")
    total = 0.0
    for part in clock.split(":"):
        total = 60 * total + float(part)
    return 86400 * int(days or 0) + total


def hms(seconds: float) -> str:
    """As batch systems write durations, rounded up.

    >>> hms(28800), hms(3600 * 100), hms(40.5)
    ('08:00:00', '100:00:00', '00:00:41')
    """
    whole = -int(-seconds // 1)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
