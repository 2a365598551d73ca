"""Draws a run, alive, finished or dead, from what it wrote."""

import importlib.util
from pathlib import Path

from shared.errors import FormatError
from train.metrics import read_metrics

PLOT_NAME = "loss.png"


def plot_losses(run: Path) -> Path | None:
    """Write the loss of every step and the validation losses to <run>/loss.png; None without matplotlib.

    Raises: FormatError if there is no run or it has no steps yet.
    """
    if not (run / "metrics.jsonl").is_file():
        raise FormatError(f"{run} has no metrics.jsonl: name the directory of a run")
    records = read_metrics(run)
    if not records:
        raise FormatError(f"{run} has no steps yet: wait for the first one")
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no {PLOT_NAME}: matplotlib is not installed (pip install matplotlib)")
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
