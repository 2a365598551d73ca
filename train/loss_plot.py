"""The losses of a run as a picture, by matplotlib."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

from train.recorded import Recorded

PLOT_NAME = "loss.png"


def draw_losses(recorded: Recorded, directory: Path, last_step: int | None = None) -> Path | None:
    """Write the loss of every step, up to `last_step`, and the validation losses to loss.png in `directory`.

    None, and nothing is written, if there are no steps, or there is no matplotlib, which is told.
    """
    columns = recorded.columns
    is_shown = columns["step"] <= (np.inf if last_step is None else last_step)
    if not is_shown.any():
        return None
    if importlib.util.find_spec("matplotlib") is None:
        print(f"no {PLOT_NAME}: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(columns["tokens"][is_shown], columns["loss"][is_shown], linewidth=1, label="training")
    is_validated = is_shown & np.isfinite(columns["validation_loss"])
    if is_validated.any():
        tokens, losses = columns["tokens"][is_validated], columns["validation_loss"][is_validated]
        axes.plot(tokens, losses, "o-", markersize=4, label="validation")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=recorded.run.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(directory / PLOT_NAME, dpi=120)
    return directory / PLOT_NAME
