"""A model as a recipe's [training] and [data] want it: which blocks recompute, in which precision, compiled or not."""

import torch

from train.architecture import ArgonneConfig
from train.compilation import Compilation
from train.config import RunConfig
from train.flash import is_available
from train.float8 import convert_to_float8
from train.legacy import LegacyModel
from train.model import ArgonneModel, Block, Part
from train.recompute import is_recomputed


def make_model(config: ArgonneConfig, part: Part | None = None) -> ArgonneModel:
    """The model, or a part of it, of the architecture that `config` names."""
    return (LegacyModel if config.architecture == "argonne-1" else ArgonneModel)(config, part)


def build_model(config: RunConfig, part: Part | None = None) -> ArgonneModel:
    """The model, or a part of it, on the meta device: still to be sharded, materialized and initialized."""
    with torch.device("meta"):
        model = make_model(config.model, part)
    model.document_mask, model.restart_positions = config.data.document_mask, config.data.restart_positions
    model.z_loss = config.training.z_loss
    has_kernel = config.training.compile and config.model.use_flash_attention and is_available(config.model.head_dim)
    for name, block in model.blocks.items():
        assert isinstance(block, Block)
        if is_recomputed(int(name), config.training.checkpoint_stride):
            block.recompute = config.training.activation_checkpointing
        block.attn.has_kernel = has_kernel
    if config.training.precision == "float8":
        convert_to_float8(model)
    if config.training.compile:
        # The zero-bubble schedules go through a graph's backward pass twice.
        model.compilation = Compilation(model.blocks.values(), donate_buffers=config.strategy != "pipeline")
    return model
