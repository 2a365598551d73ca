"""A run, alive, finished or dead, told from what it wrote: a few lines, figures for programs, a page, a plot."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.storage import write_file
from shared.terminal import counted, safe_text
from train.curves import KINDS, kind_of
from train.loss_plot import draw_losses
from train.recorded import Values
from train.report_page import report_page
from train.study import Study, study_all, told_of_sources
from train.wording import duration

PAGE_NAME, COMPARED_NAME = "report.html", "compared.html"
SPARKLINE_WIDTH = 60
BLOCKS, PLAIN_BLOCKS = "".join(map(chr, range(0x2581, 0x2589))), "_.-=+*#@"


def report(
    runs: Sequence[Path],
    out: Path | None = None,
    recipe: str | None = None,
    *,
    as_json: bool = False,
    png: bool = False,
) -> str:
    """What one run, or each of two, has done so far, in a few lines or as JSON; the page is written beside it.

    The page is `out` or in the directory of the first run. As JSON there is one only if `out` says where.

    Raises: FormatError if there is no run; ConfigError if there is no such recipe; StorageError if the disk refuses.
    """
    now_s = time.time()
    studies = study_all(runs, recipe, now_s)
    page = out or runs[0] / (PAGE_NAME if len(runs) == 1 else COMPARED_NAME)
    if out or not as_json:
        write_file(page, [report_page(studies, now_s).encode()])
    plots = [draw_losses(one.recorded, one.recorded.run) for one in studies if png]
    if as_json:
        return _json({"runs": [one.figures() for one in studies]})
    told = [line for one in studies for line in [*summary(one, BLOCKS if _has_blocks() else PLAIN_BLOCKS), ""]][:-1]
    told += [f"plot        {plot}" for plot in plots if plot] + [f"page        {page}"]
    return "\n".join(map(safe_text, told))


def _json(figures: Any) -> str:
    """JSON in which what is no finite number is null."""
    return json.dumps(json.loads(json.dumps(figures), parse_constant=lambda _: None), indent=1)


def _has_blocks() -> bool:
    """Whether the terminal can show the blocks of a sparkline."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return os.environ.get("TERM") != "dumb"


def summary(one: Study, blocks: str) -> list[str]:
    """A run in a few lines."""
    figures, total = one.figures(), "" if one.total_steps is None else f" of {one.total_steps:,}"
    counts = Counter(kind_of(event) for event in one.recorded.events)
    lines = [
        f"run         {one.recorded.run}",
        f"state       {one.state}",
        f"steps       {figures['steps']:,}{total}, {figures['tokens'] or 0:,.0f} tokens",
    ]
    lines += [f"began from  {one.beginning}"] if one.beginning else []
    steps, losses = one.column("loss")
    if len(losses):
        lines.append(f"loss        {losses[0]:.4f} at step {steps[0]:.0f} -> {losses[-1]:.4f} at step {steps[-1]:.0f}")
        lines.append(f"            {sparkline(losses, SPARKLINE_WIDTH, blocks)}")
    steps, losses = one.column("validation_loss")
    lines += [f"validation  {loss:.4f} at step {step:.0f}" for step, loss in list(zip(steps, losses, strict=True))[-3:]]
    lines += [f"source      {told}" for told in told_of_sources(figures["sources"])]
    if figures["tokens_per_s"] is not None:
        lines.append(f"speed       {figures['tokens_per_s']:,.0f} tokens/s, mfu {figures['mfu'] or 0:.0%} (medians)")
    if one.lost.seconds:
        shares = sorted(one.lost.seconds.items(), key=lambda item: -item[1])[:4]
        told = ", ".join(f"{cause} {share_s / one.lost.total_s:.1%}" for cause, share_s in shares)
        starts = counted(len(one.starts), "start")
        lines.append(f"time        {duration(one.lost.total_s)} in {starts}: {told}")
    if happened := [
        f"{KINDS[kind][1]} {counts[kind]}" for kind in KINDS if counts[kind] and kind not in ("start", "end")
    ]:
        lines.append(f"happened    {', '.join(happened)}")
    if figures["data_digest"] is not None:
        lines.append(f"digest      {figures['data_digest']}")
    return lines + [f"problem     {problem}" for problem in one.recorded.problems]


def sparkline(values: Values, width: int, blocks: str) -> str:
    """Values as so many blocks of rising height, each the mean of a stretch.

    >>> sparkline(np.array([1.0, 2.0, 3.0, 8.0]), 60, PLAIN_BLOCKS)
    '_.-@'
    """
    values = values[np.isfinite(values)]
    means = (
        np.array([part.mean() for part in np.array_split(values, min(width, len(values)))]) if len(values) else values
    )
    spread = np.ptp(means) if len(means) else 0.0
    levels = (means - means.min()) / spread * (len(blocks) - 1) if spread else np.zeros(len(means))
    return "".join(blocks[round(level)] for level in levels.tolist())
