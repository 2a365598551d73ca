"""A model as a recipe wants it."""

import torch

from train.config import RunConfig
from train.model import ArgonneModel, Part


def build_model(config: RunConfig, part: Part | None = None) -> ArgonneModel:
    """The model, or a part of it, on the meta device: still to be sharded, materialized and initialized."""
    with torch.device("meta"):
        return ArgonneModel(config.model, part)
