"""The starts of a run, from its events: where and on what each ran, which steps are its, and how it ended."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.heartbeat import HEARTBEATS_NAME, read_heartbeats
from train.patience import ENDED
from train.recorded import Recorded, number
from train.status import DEAD_S

ENDS = ("finished", "stopped")
BEFORE = ("damaged", "swept", "unfinished")
"""What a start may tell before it tells that it has started."""
UNTOLD = "not told: it was killed, or its machine lost"


@dataclass(frozen=True)
class Start:
    """One start. Times are wall times; NaN is what the run does not tell."""

    event: Mapping[str, Any]
    events: list[dict[str, Any]]
    """From it on, up to the next start."""
    after: int
    """The step after which it went on."""
    until: int
    """The last step that it has done and that no later start has done again; the first step of these is `after` + 1."""
    seen_s: float
    """The last moment at which it was surely alive."""
    end_s: float
    how: str
    """It ended, in words."""
    is_cut: bool
    """Whether it ended in the middle of something."""
    undone: Mapping[str, float] = field(default_factory=dict)
    """Steps of it that the next start did once more, and the time that they had taken."""

    @property
    def time_s(self) -> float:
        """When it was ready for its first step."""
        return number(self.event, "time")

    @property
    def setup_s(self) -> float:
        """What it took to come there."""
        return number(self.event, "setup_s")

    @property
    def began_s(self) -> float:
        """When its processes began, or else when it was ready."""
        return self.time_s if math.isnan(self.setup_s) else self.time_s - self.setup_s

    @property
    def num_steps(self) -> int:
        """Steps of it that count."""
        return max(self.until - self.after, 0)

    def named(self, *names: str) -> list[dict[str, Any]]:
        """Its events of these names."""
        return [event for event in self.events if event["event"] in names]


def starts_of(recorded: Recorded, now_s: float) -> list[Start]:
    """All starts of a run that got so far as to be ready for a step, in order."""
    events = recorded.events
    places = [place for place, event in enumerate(events) if event["event"] == "start"]
    afters = [int(number(events[place], "step")) for place in places if not math.isnan(number(events[place], "step"))]
    if len(afters) < len(places):
        recorded.problems.append("a start in events.jsonl tells no step: no start is told of")
        return []
    ends = [*places, len(events)][1:]
    last_step = int(recorded.columns["step"][-1]) if recorded.num_steps else 0
    starts = []
    for count, (place, end) in enumerate(zip(places, ends, strict=True)):
        following = events[end] if end < len(events) else None
        until = min([last_step, *afters[count + 1 :]])
        starts.append(_start(recorded, events[place:end], following, afters[count], until, now_s))
    return starts


def _start(
    recorded: Recorded,
    events: Sequence[dict[str, Any]],
    following: Mapping[str, Any] | None,
    after: int,
    until: int,
    now_s: float,
) -> Start:
    own = [*events[:1], *(e for e in events[1:] if following is None or not _is_of_next(e, following))]
    seen_s = max(number(event, "time") for event in own)
    if following is None:
        seen_s, end_s, how, is_cut = _last_end(recorded, own, seen_s, now_s)
        undone: dict[str, float] = {}
    else:
        end_s, how, is_cut = _end(own) or (math.nan, UNTOLD, True)
        undone = {name: number(following, name) for name in ("undone", "undone_s") if name in following}
    return Start(own[0], own, after, max(until, after), seen_s, end_s, how, is_cut, undone)


def _is_of_next(event: Mapping[str, Any], following: Mapping[str, Any]) -> bool:
    """Whether an event was told by the start that followed, before that told of itself."""
    setup_s = number(following, "setup_s")
    is_late = not math.isnan(setup_s) and number(event, "time") > number(following, "time") - setup_s
    return event["event"] != "restart" and (is_late or event["event"] in BEFORE)


def _end(events: Sequence[Mapping[str, Any]]) -> tuple[float, str, bool] | None:
    """When and how a start ended, and whether in the middle of something; None if it does not tell.

    What follows its end is of starts that never were ready.
    """
    hang = next((event for event in events if event["event"] == "hang"), None)
    for event in events:
        if event["event"] in ENDS:
            return number(event, "time"), f"{event['event']}: {event.get('reason', '')}", False
        if event["event"] == "restart":
            how = f"died: {event.get('reason', '')}" if hang is None else f"hang: {hang.get('problem', '')}"
            return number(event, "time"), how, True
    return None if hang is None else (number(hang, "time"), f"hang: {hang.get('problem', '')}", True)


def _last_end(
    recorded: Recorded, events: Sequence[Mapping[str, Any]], seen_s: float, now_s: float
) -> tuple[float, float, str, bool]:
    """When the newest start was last seen, when and how it ended, and whether in the middle of something."""
    state, told_s = recorded.state.get("state"), min(number(recorded.state, "time"), now_s)
    if found := _end(events):
        return seen_s, *found
    if state == "failed" and told_s >= number(events[0], "time"):
        return seen_s, told_s, f"failed: {recorded.state.get('reason')}", True
    beats = read_heartbeats(recorded.run / HEARTBEATS_NAME) if (recorded.run / HEARTBEATS_NAME).is_dir() else []
    pulses = [record.pulse_time for record in beats if record.pulse_time > number(events[0], "time") - 1]
    if pulses and any(now_s - record.pulse_time < DEAD_S and record.phase != ENDED for record in beats):
        return now_s, now_s, "still running", False
    return max([seen_s, *pulses]), math.nan, UNTOLD, True


def changes_of(start: Start) -> list[str]:
    """What this start did otherwise than the one before."""
    told = [event.get("changes") for event in start.named("changed")]
    return [str(change) for changes in told if isinstance(changes, list) for change in changes]


def machine_of(start: Start) -> str:
    """The machine of its first rank, and how many ranks there were."""
    host, ranks = start.event.get("host"), start.event.get("ranks")
    return f"{host}, {ranks} rank{'' if ranks == 1 else 's'}" if host is not None else "not told"
