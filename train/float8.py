"""Projections in float8, by torchao, where there is a GPU that multiplies it."""

import importlib.util

import torch

from shared.errors import ConfigError
from train.model import ArgonneModel

CAPABILITY = (8, 9)  # of CUDA devices: the first with float8 products
MULTIPLE = 16  # of both sizes of a matrix, for them


def check_float8() -> None:
    """Raises: ConfigError if float8 cannot be had here."""
    found = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    if found is None or found < CAPABILITY:
        here = "this is a CPU" if found is None else f"this one has {found[0]}.{found[1]}"
        raise ConfigError(
            f"training.precision float8 needs a GPU of compute capability {CAPABILITY[0]}.{CAPABILITY[1]} or more, "
            f"{here}: use bf16 on a GPU, fp32 on a CPU"
        )
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "training.precision float8 needs torchao, which is not installed: "
            "pip install 'argonne[float8]', or use bf16"
        )


def convert_to_float8(model: ArgonneModel, emulate: bool = False) -> None:
    """Let the projections of the blocks multiply in float8; names and weights stay as they are.

    The embedding and the head stay in bf16, and so do projections whose sizes do not fit. `emulate` rounds to float8
    and multiplies in another type, on any device: for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: torch.nn.Module, _name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and not any(size % MULTIPLE for size in module.weight.shape)

    convert_to_float8_training(model.blocks, module_filter_fn=fits, config=Float8LinearConfig(emulate=emulate))
