"""Pure: how long a rank may be silent before it counts as hung, learned from how long it has been."""

from collections import deque

SETUP, FETCH, COMPUTE, AGREE = "setup", "fetch", "compute", "agree"
OPTIMIZE, VALIDATE, SAVE, ENDED = "optimize", "validate", "save", "ended"
PHASES = (SETUP, FETCH, COMPUTE, AGREE, OPTIMIZE, VALIDATE, SAVE, ENDED)
"""What a rank can be at: the wiring, the parts of a step, and what comes between steps."""
STEP = "step"
"""All phases of a step together: their limit is one, by the time of whole steps."""
LEAST = {STEP: 1, VALIDATE: 10, SAVE: 10}
"""Times `recovery.hang_timeout_s`: what phases that were seen before are given at least."""
UNKNOWN = 30
"""The same for the first step (which compiles), the first validation and save, and the setup."""
FACTOR = 5
"""Times what a phase has taken, its 95th percentile."""
SILENCE = 0.7
"""Of that, the silence after which a rank is hung. The rest is for the others: they fall silent up to a step later, and
look at each other, and end."""
REMEMBERED = 100


class Patience:
    """The limits of one rank. It is told what was done from one thread; any thread may ask.

    >>> patience = Patience(60)
    >>> patience.limit_s(COMPUTE), patience.limit_s(SAVE)
    (1260.0, 1260.0)
    >>> for step in range(3):  # of which the first is forgotten and the last has not ended
    ...     patience.spent(step, COMPUTE, 20.0)
    >>> patience.limit_s(COMPUTE), patience.limit_s(SAVE)
    (70.0, 1260.0)
    """

    def __init__(self, hang_timeout_s: float) -> None:
        self.hang_timeout_s = hang_timeout_s
        self._limits_s = dict.fromkeys((SETUP, *LEAST), SILENCE * UNKNOWN * hang_timeout_s)
        self._taken_s = {kind: deque[float](maxlen=REMEMBERED) for kind in LEAST}
        self._step: int | None = None
        self._step_s = 0.0
        self._is_first = True

    def limit_s(self, phase: str) -> float:
        """Seconds of silence after which a rank in this phase is hung."""
        return self._limits_s[_kind(phase)]

    def spent(self, step: int, phase: str, seconds: float) -> None:
        """A phase of that step has ended."""
        if phase in (VALIDATE, SAVE):
            self._learn(phase, seconds)
        elif phase != SETUP:
            if self._step not in (None, step):
                self._step_ended()
            self._step, self._step_s = step, self._step_s + seconds

    def _step_ended(self) -> None:
        if not self._is_first:
            self._learn(STEP, self._step_s)
        self._is_first, self._step_s = False, 0.0

    def _learn(self, kind: str, seconds: float) -> None:
        taken_s = self._taken_s[kind]
        taken_s.append(seconds)
        most_s = sorted(taken_s)[len(taken_s) * 95 // 100]
        self._limits_s[kind] = SILENCE * max(LEAST[kind] * self.hang_timeout_s, FACTOR * most_s)


def _kind(phase: str) -> str:
    return phase if phase in (SETUP, VALIDATE, SAVE) else STEP
