"""Where the time of a run went, from what it has written down. The parts add up to all of it: what is not known is one.

A step is told with its seconds, a save with those that training waited for it, a start with its setup and with the
steps that it had to do again. What lies between them is told apart by how the start ended.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.recorded import Recorded, Values, number
from train.starts import Start

NEIGHBOURS = 8
"""Steps on either side that a step is compared with."""
CAUSES = {
    "training": "steps that count, without what follows",
    "data": "waiting for data, within steps",
    "first steps": "the first step of each start, above the steps after it: compiling, warming up",
    "memory": "steps in which memory ran out, above the steps beside them",
    "bad steps": "steps that were skipped, and second tries, above the steps beside them",
    "done twice": "steps that were done again after a restart or a rollback",
    "validation": "validation losses",
    "saves": "training waiting for a save; the rest of saving goes on beside it",
    "setup": "from the first rank's process to its first step, and from the end of a rank to it",
    "hangs": "from the last step that was told to the moment at which a hang was noticed",
    "broken off": "from the last step that was told to a death, an error or the last sign of life",
    "between steps": "what is told of nowhere: agreeing, writing lines, ending",
    "gaps": "from the end of one job to the start of the next; after a kill, from its last sign of life",
}
"""What each part is of, in the order in which they are shown."""


@dataclass(frozen=True)
class LostTime:
    """Seconds of each cause; together they are all the time from the run's first process to its end, or its last sign.

    The first of the causes is not lost.
    """

    seconds: Mapping[str, float]
    unknown: list[str]
    """What the files do not tell."""

    @property
    def total_s(self) -> float:
        """All of it."""
        return sum(self.seconds.values())


def lost_time(recorded: Recorded, starts: Sequence[Start]) -> LostTime:
    """The time of a run by cause."""
    seconds: defaultdict[str, float] = defaultdict(float)
    last_s = math.nan
    for start in starts:
        if not math.isnan(last_s):
            seconds["setup" if _is_restart(start) else "gaps"] += max(start.began_s - last_s, 0.0)
        measured = _measured(recorded, start)
        seconds["setup"] += start.time_s - start.began_s
        for cause, cause_s in measured.items():
            seconds[cause] += cause_s
        measured_until_s = start.time_s + sum(measured.values())
        last_s = max(start.seen_s, measured_until_s) if math.isnan(start.end_s) else start.end_s
        seconds[_rest(start)] += max(last_s - measured_until_s, 0.0)
    return LostTime({cause: seconds[cause] for cause in CAUSES if seconds[cause] > 0}, _unknown(recorded, starts))


def _is_restart(start: Start) -> bool:
    """Whether the same job started it again."""
    return number(start.event, "restarts") > 0


def _rest(start: Start) -> str:
    if not start.is_cut:
        return "between steps"
    return "hangs" if start.named("hang") else "broken off"


def _measured(recorded: Recorded, start: Start) -> dict[str, float]:
    """What the lines of a start add up to, by cause."""
    columns = recorded.columns
    mine = slice(*np.searchsorted(columns["step"], [start.after, start.until], side="right"))
    steps, took_s, waited_s = (columns[name][mine] for name in ("step", "step_s", "data_wait_s"))
    is_told = ~np.isnan(took_s)
    steps, took_s = steps[is_told], took_s[is_told]
    waited_s = np.nan_to_num(waited_s[is_told])
    skipped = np.isnan(columns["loss"][mine][is_told])
    memory, again = (_at(steps, start, name) & ~skipped for name in ("backoff", "bad-step"))
    first = (np.arange(len(steps)) == 0) & ~skipped & ~memory & ~again
    extra_s = np.where(first | memory | again, excess(took_s, first | memory | again | skipped), 0.0)
    extra_s = np.where(skipped, took_s, np.minimum(extra_s, took_s - waited_s))
    waited_s = np.where(skipped, 0.0, waited_s)
    undone = [number(event, "undone_s") for event in start.named("rollback")]
    undone.append(start.undone.get("undone_s", 0.0))
    stalls = [number(event, "stall_s") for event in start.named("save")]
    return {
        "training": float((took_s - waited_s - extra_s).sum()),
        "data": float(waited_s.sum()),
        "first steps": float(extra_s[first].sum()),
        "memory": float(extra_s[memory].sum()),
        "bad steps": float(extra_s[(again & ~memory) | skipped].sum()),
        "done twice": float(np.nansum(undone)),
        "validation": float(np.nansum(columns["validation_s"][mine])),
        "saves": float(np.nansum(stalls)),
    }


def _at(steps: Values, start: Start, name: str) -> npt.NDArray[np.bool_]:
    """Which of the steps an event of this name is of."""
    return np.isin(steps, [number(event, "step") for event in start.named(name)])


def excess(took_s: Values, odd: npt.NDArray[np.bool_]) -> Values:
    """How much longer each odd step took than the median of those beside it that are not; 0 for the others.

    >>> excess(np.array([1.0, 1.0, 4.0, 1.2]), np.array([False, False, True, False])).round(6).tolist()
    [0.0, 0.0, 3.0, 0.0]
    """
    usual = took_s.copy()
    for place in np.flatnonzero(odd):
        around = slice(max(place - NEIGHBOURS, 0), place + NEIGHBOURS + 1)
        others = took_s[around][~odd[around]]
        usual[place] = np.median(others) if len(others) else took_s[place]
    return np.maximum(took_s - usual, 0.0)


def _unknown(recorded: Recorded, starts: Sequence[Start]) -> list[str]:
    """What of the time the files do not tell."""
    found = []
    if count := sum(math.isnan(start.end_s) for start in starts):
        found.append(
            f"{_starts(count)} not tell when it ended: what it did after its last line counts as a gap, or is not in "
            "the total"
        )
    if count := sum(math.isnan(start.setup_s) for start in starts):
        found.append(f"{_starts(count)} not tell how long its setup took (an earlier release): it counts as a gap")
    if count := sum("undone_s" not in start.event and start.after > 0 for start in starts):
        found.append(f"{_starts(count)} not tell what it did again (an earlier release): that is in other parts")
    validated = ~np.isnan(recorded.columns["validation_loss"])
    if count := int((validated & np.isnan(recorded.columns["validation_s"])).sum()):
        found.append(f"{count} validation losses without their seconds (an earlier release): they are in other parts")
    return found


def _starts(count: int) -> str:
    return "1 start does" if count == 1 else f"{count} starts do"
