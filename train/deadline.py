"""Pure: when a run must stop to be saved before its job ends, from what its steps and saves took so far."""

from collections import deque
from dataclasses import dataclass, field

KEPT_STEPS = 200
"""Of which the 95th percentile is taken: a few minutes to hours, so that a run that got slower is known as slower."""
LEAST_SAVE_S = 10.0
SAVE_BYTES_PER_S = 100e6
"""What is supposed as long as no save was measured: less than file systems that models are trained on."""


def guessed_save_s(size_bytes: int, bytes_per_s: float = SAVE_BYTES_PER_S) -> float:
    """Seconds that a save of so many bytes may take, in all from all ranks.

    >>> guessed_save_s(12_000_000_000)
    130.0
    """
    return LEAST_SAVE_S + size_bytes / bytes_per_s


@dataclass
class Pace:
    """How long the steps and saves of this start of a run take."""

    guessed_save_s: float
    save_s: float | None = None
    """The longest."""
    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_STEPS))
    _first_s: float | None = None

    def stepped(self, step_s: float) -> None:
        """A step took so long; the first, in which blocks are compiled, counts only until there is another."""
        if self._first_s is None:
            self._first_s = step_s
        else:
            self.steps_s.append(step_s)

    def saved(self, save_s: float) -> None:
        """A save took so long, from its begin until its checkpoint was there."""
        self.save_s = max(save_s, self.save_s or 0.0)

    @property
    def step_s(self) -> float:
        """The 95th percentile of the steps: the least that 95% of them do not exceed."""
        if not self.steps_s:
            return self._first_s or 0.0
        ordered = sorted(self.steps_s)
        return ordered[-(-len(ordered) * 95 // 100) - 1]

    def needed_s(self, margin_s: float) -> float:
        """Time that must be left before another step: two saves (one may be under way, or due), the step, the margin.

        >>> pace = Pace(guessed_save_s=20.0)
        >>> pace.needed_s(5.0)
        45.0
        >>> pace.stepped(9.0), pace.stepped(1.0), pace.saved(2.0)
        (None, None, None)
        >>> pace.needed_s(5.0)
        10.0
        """
        save_s = self.guessed_save_s if self.save_s is None else self.save_s
        return 2 * save_s + self.step_s + margin_s


@dataclass(frozen=True)
class Deadline:
    """The end of a job on the clock that never jumps."""

    end_s: float
    """Of time.monotonic()."""
    margin_s: float
    source: str

    def is_last_moment(self, now_s: float, pace: Pace) -> bool:
        """Whether another step could be one too many at `now_s`.

        >>> Deadline(100.0, 5.0, "--deadline").is_last_moment(54.0, Pace(guessed_save_s=20.0))
        False
        >>> Deadline(100.0, 5.0, "--deadline").is_last_moment(55.5, Pace(guessed_save_s=20.0))
        True
        """
        return self.end_s - now_s < pace.needed_s(self.margin_s)
