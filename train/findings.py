"""RUN/microbatch.json: what was found out about microbatches, for the next start of a run on the same devices."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shared.config import unstructure
from shared.errors import FormatError
from shared.storage import read_sealed, write_sealed
from train.collective import gather, rank
from train.config import RunConfig
from train.layout import Layout

MICROBATCH_NAME = "microbatch.json"


@dataclass(frozen=True)
class Trial:
    """How long an optimizer step's forward and backward passes take with a microbatch."""

    microbatch: int
    step_s: float


@dataclass(frozen=True)
class Found:
    """What the file says."""

    trials: tuple[Trial, ...] = ()
    fits: int | None = None
    """The microbatch of which a whole step has gone through."""
    at_most: int | None = None
    """No larger microbatch is used: one ran out of memory."""
    is_eager: bool = False
    """Blocks are not compiled: the compiler ran out of memory with the smallest microbatch."""
    reason: str | None = None
    """Of the last two."""

    def told(self) -> dict[str, Any]:
        """What is not as the recipe says, or where it does not say."""
        step_s = {"step_s": {trial.microbatch: trial.step_s for trial in self.trials}} if self.trials else {}
        return step_s | ({"reason": self.reason} if self.reason else {})


class Findings:
    """What is known here. What was found out on other devices, or for another recipe, does not count."""

    def __init__(self, path: Path, config: RunConfig, layout: Layout, device: torch.device) -> None:
        self.path, self._here = path, _situation(config, layout, device)
        self.found = gather(self._recall() if rank() == 0 else None)[0] or Found()

    def add(self, **found: Any) -> None:
        """Remember this as well; every rank must call it."""
        self.found = replace(self.found, **found)
        if rank() == 0:
            self._write()

    def add_here(self, **found: Any) -> None:
        """Remember what this rank alone knows. Several ranks may do so at once: each writes the whole file."""
        self.found = replace(self.found, **found)
        self._write()

    def _write(self) -> None:
        write_sealed(self.path, {**self._here, **asdict(self.found)})

    def _recall(self) -> Found | None:
        """What is in the file, if it is there, whole, and of this situation."""
        if not self.path.is_file():
            return None
        try:
            told = read_sealed(self.path)
        except FormatError:  # damaged: found out again, and written again
            return None
        if any(told.get(name) != value for name, value in json.loads(json.dumps(self._here)).items()):
            return None
        trials = tuple(Trial(**trial) for trial in told["trials"])
        return Found(trials, told["fits"], told["at_most"], told["is_eager"], told["reason"])


def largest_allowed(path: Path) -> int | None:
    """The microbatch that no start of the run goes above since a larger one ran out of memory, if one did."""
    try:
        at_most: int | None = read_sealed(path)["at_most"]
    except (FileNotFoundError, FormatError):
        return None
    return at_most


def _situation(config: RunConfig, layout: Layout, device: torch.device) -> dict[str, Any]:
    """All that the fastest microbatch, and the largest that fits, may depend on."""
    cores = f"{os.cpu_count()} cores"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cores
    recipe = unstructure(config)
    return {
        "recipe": {name: section for name, section in recipe.items() if name not in {"checkpoint", "recovery"}},
        "layout": str(layout),
        "device": name,
        "memory_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "torch": torch.__version__,
    }
