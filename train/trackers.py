"""TensorBoard, Weights & Biases and Trackio behind one small interface. Each is imported when it is used."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

PROJECT = "argonne"


class Tracker(Protocol):
    """Where the numbers of a run are shown."""

    def rewind(self, step: int) -> bool:
        """Forget `step` and all later ones; False if it cannot, so that what it has stays."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step; steps only grow."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in RUN/tensorboard, a new one for each start; `tensorboard --logdir` reads them as one run."""

    def __init__(self, run: Path, identity: str, recipe: Mapping[str, Any]) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        del identity, recipe  # the directory says whose they are
        self._writer = EventFileWriter(str(run / "tensorboard"))

    def rewind(self, step: int) -> bool:
        """A reader drops what files before this one have of `step` and later ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        started = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=step, session_log=started))
        return True

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One event with a scalar for each."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Write and close the file."""
        self._writer.close()


class Rows:
    """What takes a row for each step and takes none back, as W&B and what is made like it."""

    _run: Any

    def rewind(self, step: int) -> bool:
        """What it has stays."""
        del step
        return False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One more row."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is not written yet, and end this start of the run."""
        self._run.finish()


class WandB(Rows):
    """A W&B run, in RUN/wandb unless WANDB_MODE says otherwise; each start continues it under its id."""

    def __init__(self, run: Path, identity: str, recipe: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=identity,
            dir=run,
            mode=os.environ.get("WANDB_MODE", "offline"),  # compute nodes have no internet
            resume="allow",
            config=dict(recipe),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )


class Trackio(Rows):
    """A Trackio run, where TRACKIO_DIR or TRACKIO_SPACE_ID say; each start continues it."""

    def __init__(self, run: Path, identity: str, recipe: Mapping[str, Any]) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = f"{run.name}-{identity}"
        self._run = trackio.init(project, name, resume="allow", config=dict(recipe), embed=False)


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
