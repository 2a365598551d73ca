"""Ratios taken in one run: the two sides take turns, and the medians are compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Ours against a bare loop that does the same work, in `unit`."""

    name: str
    unit: str
    ours: float
    bare: float

    def row(self) -> tuple[str, str, str, str, str]:
        """Cells for a table."""
        return self.name, f"{self.ours:,.1f}", f"{self.bare:,.1f}", self.unit, f"{self.ours / self.bare:.2f}"


def compare(name: str, unit: str, work: float, ours: Callable[[], object], bare: Callable[[], object], rounds: int = 5):
    """Work a second of both sides, A B A B; the first turn of each warms up."""
    seconds: dict[Callable[[], object], list[float]] = {ours: [], bare: []}
    for _ in range(rounds + 1):
        for side, taken in seconds.items():
            began = time.perf_counter()
            side()
            taken.append(time.perf_counter() - began)
    return Comparison(name, unit, work / median(seconds[ours][1:]), work / median(seconds[bare][1:]))
