"""Which data every step of a run has read, and on which ranks: from what its starts, backoffs and rollbacks have told.

What a start tells for this is written here too, so that nothing has to be guessed.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from shared.config import structure, unstructure
from shared.cursor import Cursor
from shared.directories import exists
from train.config import DataConfig, RunConfig
from train.layout import Layout
from train.records import EVENTS_NAME, read_events


@dataclass(frozen=True)
class Stretch:
    """Steps that read on from one place by the same options, on ranks that share the work in the same way."""

    after: int
    """The step before the first of them."""
    begun: int
    """The step after which the run was at `cursor`: `after`, or one before it where only the microbatch changed."""
    cursor: Cursor | None
    """What is None was not told by the release that this start was of."""
    data: DataConfig | None
    layout: Layout | None
    microbatch: int | None
    told: str
    """The layout in words, as the start told it."""

    def smaller(self, microbatch: int, first: int) -> "Stretch":
        """From step `first` on in smaller microbatches."""
        layout = self.layout
        if layout is not None and self.data is not None:
            layout = replace(layout, microbatches=self.data.global_batch // (layout.dp_size * microbatch))
        return replace(
            self, after=max(first - 1, self.after), microbatch=microbatch, layout=layout, told=str(layout or self.told)
        )


@dataclass(frozen=True)
class History:
    """The stretches of a run, ascending: each goes on to where the next one begins, the last one to the run's end."""

    stretches: list[Stretch] = field(default_factory=list)
    undone: list[tuple[Stretch, int]] = field(default_factory=list)
    """Stretches that a rollback took back with all that they taught, and the last step of each."""
    tokens: Path | None = None
    """Where the dataset was at the last start that told it."""

    def of(self, step: int) -> Stretch | None:
        """The stretch that `step` is of; None if the run was never started."""
        number = bisect_left(self.stretches, step, key=lambda stretch: stretch.after) - 1
        return self.stretches[number] if number >= 0 else None

    def until(self, last: int) -> list[tuple[Stretch, int]]:
        """The stretches up to step `last`, and the last step of each."""
        ends = [*(stretch.after for stretch in self.stretches[1:]), last]
        pairs = zip(self.stretches, ends, strict=True)
        return [(stretch, min(end, last)) for stretch, end in pairs if stretch.after < min(end, last)]


def told_at_start(tokens: Path, config: RunConfig, layout: Layout, cursor: Cursor) -> dict[str, Any]:
    """What a start tells under `reads`, so that its steps can be found again."""
    return {
        "cursor": cursor,
        "data": unstructure(config.data),
        "grid": asdict(layout),
        "microbatch": config.microbatch,
        "tokens": str(tokens.absolute()),
    }


def read_history(run: Path, recipe: RunConfig) -> History:
    """The history of the run in `run`, which has `recipe` now.

    Raises: FormatError if a line of its events is damaged.
    """
    return history(read_events(run) if exists(run / EVENTS_NAME) else [], recipe)


def history(events: Sequence[Mapping[str, Any]], recipe: RunConfig) -> History:
    """What follows from a run's events.

    A start that tells no options had those of `recipe`, unless the run says that it went on with others since.
    """
    stretches, undone, tokens = list[Stretch](), list[tuple[Stretch, int]](), None
    last_other = _last_start_with_other_data(events)
    for number, event in enumerate(events):
        if event["event"] == "start":
            new = _started(event, recipe.data if number >= last_other else None)
            tokens = event.get("reads", {}).get("tokens", tokens)
        elif event["event"] == "backoff" and stretches:
            new = stretches[-1].smaller(event["to"], event.get("first", event["step"]))
        elif event["event"] == "rollback" and stretches:
            cursor = Cursor(*event["cursor"]) if "cursor" in event else None
            cut = History(stretches).until(event["step"])
            undone += [
                (replace(old, after=max(old.after, event["to"])), last) for old, last in cut if last > event["to"]
            ]
            new = replace(stretches[-1], after=event["to"], begun=event["to"], cursor=cursor)
        else:
            continue
        stretches = [*(stretch for stretch in stretches if stretch.after < new.after), new]
    return History(stretches, undone, None if tokens is None else Path(tokens))


def _started(event: Mapping[str, Any], data: DataConfig | None) -> Stretch:
    step, told = event["step"], event["layout"]
    if "reads" not in event:
        return Stretch(step, step, None, data, None, None, told)
    reads = event["reads"]
    data = structure(reads["data"], DataConfig, EVENTS_NAME)
    layout = structure(reads["grid"], Layout, EVENTS_NAME)
    return Stretch(step, step, Cursor(*reads["cursor"]), data, layout, reads["microbatch"], told)


def _last_start_with_other_data(events: Sequence[Mapping[str, Any]]) -> int:
    """The number of the last start that went on with other options of [data] than the one before; its event follows."""
    start = last = 0
    for number, event in enumerate(events):
        if event["event"] == "start":
            start = number
        elif event["event"] == "changed" and any(change.startswith("recipe.data.") for change in event["changes"]):
            last = start
    return last
