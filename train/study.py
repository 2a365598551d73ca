"""All that a report tells of a run, as plain values: what the terminal, the page and --json have in common."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.config import unstructure
from train.chain import Link, read_with_chain
from train.config import RECIPES, RunConfig, load_recipe
from train.continuing import flatten
from train.curves import documents_of, kind_of, told
from train.lost_time import CAUSES, LostTime, lost_time
from train.recorded import Recorded, loss_columns, number, section
from train.starts import Start, changes_of, machine_of, starts_of

NOTABLE = ("backoff", "skip", "bad-step", "spike", "rollback", "hang", "problem", "warning", "restart")
MOST_NOTABLE = 200


@dataclass(frozen=True)
class Difference:
    """A value of the recipe that is another than in what it is compared with."""

    name: str
    shipped: Any
    here: Any


@dataclass(frozen=True)
class Study:
    """One run."""

    recorded: Recorded
    starts: list[Start]
    lost: LostTime
    recipe_name: str
    """That the recipe is compared with."""
    differences: list[Difference]
    links: list[Link]
    name: str
    """Of its directory, or all of its path if another run has that name."""

    @property
    def state(self) -> str:
        """How it is, in words."""
        return self.starts[-1].how if self.starts else str(self.recorded.state.get("state") or "no start is told")

    @property
    def total_steps(self) -> int | None:
        """Where its schedule ends."""
        total = self.recorded.about.get("total_steps")
        return total if isinstance(total, int) else None

    def column(self, name: str) -> tuple[Any, Any]:
        """The steps that have a value in a column, and the values."""
        values = self.recorded.columns[name]
        there = ~np.isnan(values)
        return self.recorded.columns["step"][there], values[there]

    def sources(self) -> dict[str, dict[str, Any]]:
        """The losses of each source of a mixture, by name."""
        return {
            source: {
                name: _ends(*self.column(column))
                for name, column in zip(("loss", "validation_loss"), loss_columns(source), strict=True)
            }
            for source in self.recorded.sources
        }

    @property
    def beginning(self) -> str | None:
        """What it began from, in words."""
        began = section(section(self.recorded.about, "identity"), "beginning")
        return f"step {began.get('step')} of {began.get('run')}, optimizer {began.get('optimizer')}" if began else None

    def usual(self, name: str) -> float | None:
        """Median of a column."""
        values = self.column(name)[1]
        return float(np.median(values)) if len(values) else None

    def notable(self) -> list[dict[str, Any]]:
        """Events that a reader wants to know of, with the documents of those that tell them."""
        found = [event for event in self.recorded.events if kind_of(event) in NOTABLE]
        return [
            {
                "time": event["time"],
                "step": _finite(number(event, "step")),
                "kind": kind_of(event),
                "told": told(event).partition(": ")[2],
                "documents": documents_of(event),
            }
            for event in found
        ]

    def figures(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "run": str(self.recorded.run),
            "state": self.state,
            "steps": self.recorded.num_steps,
            "total_steps": self.total_steps,
            "tokens": _finite(number(self.recorded.last, "tokens")),
            "loss": _ends(*self.column("loss")),
            "validation_loss": _ends(*self.column("validation_loss")),
            "sources": self.sources(),
            "began_from": self.beginning,
            **{name: self.usual(name) for name in ("tokens_per_s", "step_s", "data_wait_s", "mfu", "bubble")},
            "skipped": _finite(number(self.recorded.last, "skipped")),
            "data_digest": self.recorded.last.get("data_digest"),
            "total_s": self.lost.total_s,
            "seconds": {cause: self.lost.seconds.get(cause, 0.0) for cause in CAUSES},
            "unknown": self.lost.unknown,
            "starts": [start_figures(start) for start in self.starts],
            "events": self.notable(),
            "recipe": self.recorded.recipe,
            "compared_with": self.recipe_name,
            "differences": [asdict(difference) for difference in self.differences],
            "chain": [asdict(link) for link in self.links],
            "problems": self.recorded.problems,
        }


def study_all(runs: Sequence[Path], recipe: str | None, now_s: float) -> list[Study]:
    """Runs as they are now, compared with a recipe or, without one, with the shipped one that differs least.

    Raises: FormatError if there is no run; ConfigError if there is no such recipe.
    """
    names = [run.resolve().name for run in runs]
    names = names if len(set(names)) == len(names) else [str(run) for run in runs]
    return [study(run, name, recipe, now_s) for run, name in zip(runs, names, strict=True)]


def study(run: Path, called: str, recipe: str | None, now_s: float) -> Study:
    """One of them."""
    recorded, links = read_with_chain(run)
    starts = starts_of(recorded, now_s)
    name, differences = compared(recorded.recipe, recipe)
    return Study(recorded, starts, lost_time(recorded, starts), name, differences, links, called)


def compared(recipe: Mapping[str, Any], name: str | None) -> tuple[str, list[Difference]]:
    """The recipe of that name, or the shipped one that differs least, and what is different here.

    Raises: ConfigError if there is no such recipe.
    """
    names = [name] if name is not None else sorted(path.stem for path in RECIPES.glob("*.toml"))
    found = {name: differences(recipe, load_recipe(name)) for name in names}
    nearest = min(names, key=lambda name: len(found[name]))
    return nearest, found[nearest] if recipe else []


def differences(recipe: Mapping[str, Any], shipped: RunConfig) -> list[Difference]:
    """What is different in a run's recipe; an option that there was not when it began has the value of now."""
    then = flatten(unstructure(shipped))
    here = flatten(unstructure(RunConfig())) | flatten(dict(recipe))
    names = sorted(name for name in then.keys() | here.keys() if then.get(name) != here.get(name))
    return [Difference(name, then.get(name), here.get(name)) for name in names]


def start_figures(start: Start) -> dict[str, Any]:
    """A start, for programs."""
    return {
        "time": start.time_s,
        "setup_s": _finite(start.setup_s),
        "machine": machine_of(start),
        "layout": start.event.get("layout"),
        "first_step": start.after + 1,
        "steps": start.num_steps,
        "done_again": start.undone.get("undone"),
        "end": _finite(start.end_s),
        "ended": start.how,
        "changes": changes_of(start),
    }


def told_of_sources(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What `Study.sources` has of each, in words.

    >>> told_of_sources({"web": {"loss": {"last": 3.0, "step": 9}, "validation_loss": None}})
    ['web, loss 3.0000 at step 9']
    """
    words = {"loss": "loss", "validation_loss": "validation"}
    return [
        ", ".join([name, *(f"{words[which]} {e['last']:.4f} at step {e['step']}" for which, e in found.items() if e)])
        for name, found in sources.items()
    ]


def _ends(steps: Any, values: Any) -> dict[str, float] | None:
    """The first, the last and the least of a column."""
    if not len(values):
        return None
    return {"first": float(values[0]), "last": float(values[-1]), "least": float(values.min()), "step": int(steps[-1])}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
