"""Ratios taken in one run: the sides take turns, and the medians are compared."""

import time
from collections.abc import Callable, Mapping
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


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each side, A B A B, over `rounds` turns; the first `warm_up` turns do not count.

    `before` each it is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(warm_up + rounds):
        for name, side in sides.items():
            before()
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    return {name: median(taken[warm_up:]) for name, taken in seconds.items()}


def compare(
    name: str,
    unit: str,
    work: float,
    ours: Callable[[], object],
    bare: Callable[[], object],
    rounds: int = 5,
    warm_up: int = 1,
):
    """Work a second of both sides."""
    seconds = take_turns({"ours": ours, "bare": bare}, rounds, warm_up)
    return Comparison(name, unit, work / seconds["ours"], work / seconds["bare"])
