"""Whether this machine has the memory for a step of a run, before a process of it is started."""

import os
from dataclasses import replace

import torch

from shared.errors import ConfigError
from train.config import RunConfig
from train.layout import Layout
from train.peak import ACCURACY, added_up, stage_peaks


def check_room(config: RunConfig, layout: Layout) -> None:
    """Raises: ConfigError if what ranks hold for certain, in the smallest microbatch, is more than there is."""
    least = config.with_microbatch(1)
    each = stage_peaks(least, replace(layout, microbatches=layout.microbatches * config.microbatch))
    if config.training.compile:  # compiled blocks keep less
        each = [replace(held, activations=0) for held in each]
    if torch.cuda.is_available():
        needed, where = max(each, key=lambda held: held.total), "a GPU"
        there = torch.cuda.get_device_properties(0).total_memory
    else:
        share = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / int(os.environ.get("WORLD_SIZE", "1"))
        needed, where = added_up(each).times(layout.dp_size * share), "this machine"
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed.total > (1 + ACCURACY) * there:
        raise ConfigError(
            f"a step in the smallest microbatch takes {needed}, {where} has {there / 2**30:.1f} GiB: use more ranks, a "
            "smaller model or training.activation_checkpointing full; `python -m train plan` tells what fits"
        )
