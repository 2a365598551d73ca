"""Pure: which rank holds up the others, from what the heartbeats of all ranks say."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.heartbeat import Record
from train.patience import ENDED


@dataclass(frozen=True)
class Sighting:
    """A rank as another one sees it."""

    record: Record
    still_s: float
    """For how long its watchdog thread was not seen to tick, by the clock of who looks."""

    @property
    def silent_s(self) -> float:
        """For how long it has not beaten, as far as is known."""
        return self.record.silent_s + self.still_s

    def __str__(self) -> str:
        return f"rank {self.record.rank} (pid {self.record.pid} on {self.record.host})"


@dataclass(frozen=True)
class Verdict:
    """What a hang is."""

    blamed: Sequence[Sighting]
    """The ranks that the others wait for; empty if all wait."""
    stopped: Sequence[Sighting]
    """Those of them whose process does not run."""
    problem: str


def judge(sightings: Sequence[Sighting], waited_s: float, still_limit_s: float) -> Verdict | None:
    """Who does not move, as a rank sees it that has waited for so long; None as long as that one may take its time.

    A process that does not run comes first, then who has beaten less often than the others, then, of those that are in
    one place, who is not waiting in a collective. A rank that has ended is nobody's to end.
    """
    living = [sighting for sighting in sightings if sighting.record.phase != ENDED]
    stopped = [sighting for sighting in living if sighting.still_s >= still_limit_s]
    if stopped:
        if all(max(sighting.silent_s, waited_s) < sighting.record.limit_s for sighting in stopped):
            return None
        words = [f"{s} does not run (stopped, dead or cut off), in {s.record.place}" for s in stopped]
        return Verdict(stopped, stopped, "; ".join(words) + _waiting(living, stopped))
    least = min(sighting.record.beats for sighting in living)
    behind = [sighting for sighting in living if sighting.record.beats == least]
    blamed = [sighting for sighting in behind if not sighting.record.waits] or behind
    if all(sighting.silent_s < sighting.record.limit_s for sighting in blamed):
        return None
    if len(sightings) > 1 and len(blamed) == len(living):
        place = f"in {blamed[0].record.place} since {blamed[0].silent_s:.0f} s"
        if len(living) < len(sightings):
            ended = ", ".join(str(sighting) for sighting in sightings if sighting not in living)
            return Verdict([], [], f"{ended} has ended, all others are {place}")
        return Verdict([], [], f"all ranks are {place}, none is behind: look at the network and the devices")
    words = [f"{s} does not get on in {s.record.place} since {s.silent_s:.0f} s" for s in blamed]
    return Verdict(blamed, [], "; ".join(words) + _waiting(living, blamed))


def _waiting(living: Sequence[Sighting], blamed: Sequence[Sighting]) -> str:
    others = [sighting.record.place for sighting in living if sighting not in blamed]
    return f"; the others wait in {others[0]}" if others else ""
