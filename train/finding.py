"""What an examination found: one thing that was looked at, how it is, and what would mend it."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
EXIT_CODES: dict[Status, int] = {"ok": 0, "warning": 1, "problem": 2}


@dataclass(frozen=True)
class Finding:
    """One line of an examination."""

    what: str
    status: Status
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.status:<8} {self.what:<16} {self.found}{f': {self.remedy}' if self.remedy else ''}"


def finding(what: str, found: str, *, problem: str = "", warning: str = "") -> Finding:
    """`found`, with the remedy of a problem or a warning, if it is one."""
    status: Status = "problem" if problem else "warning" if warning else "ok"
    return Finding(what, status, found, problem or warning)


def worst(findings: list[Finding]) -> Status:
    """The status of them all.

    >>> worst([finding("a", "1"), finding("b", "2", warning="mend it")])
    'warning'
    """
    return max((each.status for each in findings), key=lambda status: EXIT_CODES[status], default="ok")
