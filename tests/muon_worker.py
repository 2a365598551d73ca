"""One rank of a test: a few steps of Muon on matrices that are spread over a mesh; rank 0 writes down what came out."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from train.collective import leave
from train.config import OptimizerConfig
from train.optim import build_optimizer

CONFIG = OptimizerConfig("muon", learning_rate=0.1, weight_decay=0.1)
SHAPES = [(24, 24), (47, 16), (5, 48)]
MESHES = {"shards": (4,), "replicas-shards": (2, 2), "replicas-whole": (4, 1)}
"""The rows of two matrices do not divide by 4; a rank has no row of the last, and one has no matrix to work on."""


class Blocks(torch.nn.Module):
    """Matrices with the names of those in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(columns, rows, bias=False) for rows, columns in SHAPES)
        self.norm = torch.nn.Parameter(torch.ones(3))


def drawn(name: str, shape: torch.Size, number: int) -> torch.Tensor:
    """Random values, the same on every rank."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(number + sum(name.encode())))


def give_gradients(model: torch.nn.Module, step: int) -> None:
    for name, parameter in model.named_parameters():
        values = drawn(name, parameter.shape, step)
        if isinstance(parameter, DTensor):
            values = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.grad = values


def trained(mesh=None, steps: int = 3) -> dict[str, torch.Tensor]:
    """Whole weights and states after some steps with given gradients, sharded over `mesh` if there is one."""
    torch.manual_seed(0)
    model = Blocks()
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    optimizer = build_optimizer(CONFIG, model)
    for step in range(steps):
        give_gradients(model, step)
        optimizer.step()
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {f"{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def main(directory: str) -> None:
    dist.init_process_group("gloo")
    for name, shape in MESHES.items():
        tensors = trained(init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :]))
        if dist.get_rank() == 0:
            torch.save(tensors, Path(directory) / f"{name}.pt")
    dist.destroy_process_group()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
