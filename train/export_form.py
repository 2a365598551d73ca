"""As what a model is exported: a Llama, or an Argonne 1.x with the code of its classes beside it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from shared.files import read_bytes
from train.architecture import ArgonneConfig
from train.legacy_names import old_config, old_name
from train.llama import llama_config, llama_name

CODE_NAME = "modeling_argonne.py"


@dataclass(frozen=True)
class Form:
    """What `transformers` is to find in a folder."""

    config: dict[str, Any]
    tensor: Callable[[str, Tensor], tuple[str, Tensor]]
    """A parameter of the model, as it is there."""
    code: dict[str, bytes] = field(default_factory=dict)
    """Files of the classes, if they are not those of `transformers`."""


def form_of(config: ArgonneConfig, dtype: str) -> Form:
    """The form in which a model of `config` is exported.

    Raises: ConfigError if it does what no Llama does.
    """
    if config.architecture == "argonne-1":
        code = {CODE_NAME: read_bytes(Path(__file__).with_name(CODE_NAME))}
        return Form(old_config(config, dtype, Path(CODE_NAME).stem), _old_tensor, code)
    return Form(llama_config(config, dtype), lambda name, tensor: (llama_name(name), tensor))


def _old_tensor(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """1.x had its positions as (1, positions, width)."""
    return old_name(name), tensor[None] if name == "embed_positions.weight" else tensor
