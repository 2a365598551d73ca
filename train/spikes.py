"""Steps whose loss or gradient norm stands out from those before it.

The recent past comes from the metrics of a run, so a run that was killed judges as one that was not.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

WINDOW = 64
"""Steps that a step is compared with."""
LEAST = 16
"""Steps before which nothing stands out."""
SPREAD = {"loss": 0.005, "grad_norm": 0.1}
"""The least standard deviation that a column is taken to have, as a share of its median: so even are a few steps."""


class Spikes:
    """The recent steps of a run. Every rank has the same."""

    def __init__(self, least_score: float | None, records: Iterable[Mapping[str, Any]]) -> None:
        """A spike is `least_score` standard deviations above the median; None: nothing is. `records`: steps so far."""
        self.least_score = least_score
        self._recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self.restart(records)

    def restart(self, records: Iterable[Mapping[str, Any]]) -> None:
        """As a new one."""
        self._recent.clear()
        for record in records:
            self.seen(record)

    def seen(self, record: Mapping[str, Any]) -> dict[str, float]:
        """The scores of what stands out in a step's record; the step counts for the next ones if nothing does."""
        if record["loss"] is None:  # skipped
            return {}
        scores = {name: robust_score(record[name], [r[name] for r in self._recent], SPREAD[name]) for name in SPREAD}
        high = {name: score for name, score in scores.items() if self.least_score and score > self.least_score}
        if not high:
            self._recent.append(record)
        return high


def robust_score(value: float, others: list[float], least_spread: float) -> float:
    """How many standard deviations `value` is above the median of `others`, of which outliers count for little.

    The deviation is estimated by the median of the distances from the median; 0 with fewer than LEAST others.

    >>> round(robust_score(9.0, [4.0, 5.0, 6.0] * 8, 0.01), 3)
    2.698

    Source: B. Iglewicz and D. Hoaglin, How to Detect and Handle Outliers, 1993 (the modified z-score).
    """
    if len(others) < LEAST:
        return 0.0
    middle = median(others)
    deviation = 1.4826 * median(abs(other - middle) for other in others)
    return (value - middle) / max(deviation, least_spread * abs(middle), 1e-30)
