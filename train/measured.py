"""How fast a run was, read from what it wrote about itself, and what that says of another recipe or number of ranks."""

from pathlib import Path
from statistics import median
from typing import Any

from shared.config import structure
from shared.directories import exists
from shared.errors import UserError
from shared.storage import read_sealed
from train.config import RunConfig
from train.deadline import SAVE_BYTES_PER_S
from train.estimate import Speed
from train.layout import flops_per_token
from train.records import EVENTS_NAME, METRICS_NAME, read_events, read_metrics
from train.run_files import RUN_NAME

NEWEST = 200
"""Steps whose median counts."""


def measured_speed(config: RunConfig, ranks: int, run: Path) -> Speed:
    """Of `ranks` that each compute as many operations a second as those of `run` did since its last start.

    Raises: UserError if the run does not tell, or has not done two steps since then.
    """
    if not (run / RUN_NAME).is_file():
        raise UserError(f"{run} is not a run (no {RUN_NAME}): name the directory of one")
    recipe = structure(read_sealed(run / RUN_NAME)["identity"]["recipe"], RunConfig, str(run / RUN_NAME))
    events = read_events(run) if exists(run / EVENTS_NAME) else []
    start: dict[str, Any] = next((event for event in reversed(events) if event["event"] == "start"), {})
    if "ranks" not in start:
        raise UserError(f"{run} does not tell of how many ranks its last start was: let it go on with this version")
    speeds = _steady(read_metrics(run) if exists(run / METRICS_NAME) else [], start["step"])
    if not speeds:
        raise UserError(f"{run} has done no two steps since its last start: let it do some more, or give --mfu")
    of_run = flops_per_token(recipe.model, recipe.data.sequence_length) * median(speeds)
    flops = flops_per_token(config.model, config.data.sequence_length)
    return Speed(
        tokens_per_s=ranks * of_run / start["ranks"] / flops,
        source=f"{of_run / start['ranks'] / 1e12:,.3g} TFLOP/s of each of the {start['ranks']} ranks of {run}",
        save_bytes_per_s=_save_bytes_per_s(events),
    )


def _steady(records: list[dict[str, Any]], start: int) -> list[float]:
    """Tokens a second of the newest steps since that one, the first of them aside, which compiles."""
    return [record["tokens_per_s"] for record in records if record["step"] > start + 1][-NEWEST:]


def _save_bytes_per_s(events: list[dict[str, Any]]) -> float:
    rates = [event["size_bytes"] / event["save_s"] for event in events if event["event"] == "save" and event["save_s"]]
    return median(rates) if rates else SAVE_BYTES_PER_S
