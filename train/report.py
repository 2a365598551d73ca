"""A run, alive, finished or dead, told from what it wrote: a few lines and a plot."""

import importlib.util
import sys
from pathlib import Path
from statistics import median
from typing import Any

from shared.errors import FormatError
from train.metrics import read_metrics

PLOT_NAME = "loss.png"


def report(run: Path) -> str:
    """What a run has done so far, in a few lines; its losses are drawn to <run>/loss.png.

    Raises: FormatError if there is no run or it has no steps yet.
    """
    records = _records(run)
    plot = plot_losses(run)
    return "\n".join(_summary(records) + ([f"plot        {plot}"] if plot else []))


def _summary(records: list[dict[str, Any]]) -> list[str]:
    learned = [record for record in records if record["loss"] is not None]
    validations = [record for record in records if "validation_loss" in record]
    return [
        f"steps       {len(records):,}, {records[-1]['tokens']:,} tokens",
        "loss        " + " -> ".join(f"{r['loss']:.4f} at step {r['step']}" for r in (*learned[:1], *learned[-1:])),
        *(f"validation  {record['validation_loss']:.4f} at step {record['step']}" for record in validations[-3:]),
        f"speed       {median(record['tokens_per_s'] for record in records):,.0f} tokens/s, "
        f"mfu {median(record['mfu'] for record in records):.0%} (medians)",
        f"digest      {records[-1]['data_digest']}",
    ]


def _records(run: Path) -> list[dict[str, Any]]:
    if not (run / "metrics.jsonl").is_file():
        raise FormatError(f"{run} has no metrics.jsonl: name the directory of a run")
    if not (records := read_metrics(run)):
        raise FormatError(f"{run} has no steps yet: wait for the first one")
    return records


def plot_losses(run: Path) -> Path | None:
    """Write the loss of every step and the validation losses to <run>/loss.png; None without matplotlib.

    Raises: FormatError if there is no run or it has no steps yet.
    """
    records = _records(run)
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no {PLOT_NAME}: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["tokens"] for r in records], [r["loss"] for r in records], linewidth=1, label="training")
    validated = [r for r in records if "validation_loss" in r]
    if validated:
        tokens, losses = [r["tokens"] for r in validated], [r["validation_loss"] for r in validated]
        axes.plot(tokens, losses, "o-", markersize=4, label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(run / PLOT_NAME, dpi=120)
    return run / PLOT_NAME
