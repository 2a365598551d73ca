"""What a user asks a run for."""

from dataclasses import dataclass
from pathlib import Path

from train.config import RunConfig
from train.console import Output
from train.loggers import Logger


@dataclass(frozen=True)
class RunRequest:
    """The recipe, and what is beside it: none of that makes it another run."""

    tokens: Path
    """The dataset."""
    run: Path
    """Where the run is or will be; a run that is there is continued."""
    config: RunConfig
    stop_step: int | None = None
    """End here, saved, without changing the schedule."""
    profile: int | None = None
    """Steps of which a trace is written into the run's directory."""
    memory_snapshot: bool = False
    """Write the allocations of every GPU into the run's directory."""
    deadline: str | None = None
    """When the job ends, if not what the batch system says."""
    steal: bool = False
    """Take the run's directory over from whoever has it."""
    output: Output = "lines"
    """What is printed meanwhile."""
    begin_from: Path | None = None
    """The run whose newest checkpoint this one begins from."""
    reset_optimizer: bool = False
    """Take the weights from there alone."""
    loggers: tuple[Logger, ...] = ()
    """Where its steps are shown beside."""
