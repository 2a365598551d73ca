"""The tensors that a run needs to continue, by name: those of a rank, and whether they are a checkpoint's.

`model.<parameter>` and `optimizer.<parameter>.<state>`: so they are named under any strategy on any number of ranks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from shared.errors import FormatError
from train.checkpoint_files import read_tensors
from train.collective import gather


def training_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Every tensor of this rank that a run needs to continue, by name; loading into them loads the run."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def load_tensors(path: Path, tensors: dict[str, Tensor], manifest: dict[str, Any]) -> None:
    """Fill `tensors` in place from the checkpoint at `path`, whose manifest was found to match its files.

    Raises: FormatError if over all ranks they are not exactly the checkpoint's in name, shape and dtype.
    """
    wanted = describe(tensors)
    kinds = {name.split(".")[0] for name in wanted}  # to sample, the model alone is wanted
    found = {name: tensor for name, tensor in manifest["tensors"].items() if name.split(".")[0] in kinds}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise FormatError(
                f"{path}: {name} is {found.get(name, 'absent')}, the model wants {wanted.get(name, 'none of it')}: "
                "the checkpoint is of another architecture"
            )
    read_tensors(path, tensors, manifest["files"])


def local_values(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this rank holds of `tensors`."""
    return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def describe(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> dict[str, list[Any]]:
    """Type and shape of every tensor of all ranks, as they stand in a manifest. Every rank of `group` calls it."""
    mine = {name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()}
    return union(gather(mine, group))


def union(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What several ranks say, as one."""
    return {name: value for part in parts for name, value in sorted(part.items())}
