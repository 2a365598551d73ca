"""All ranks of a run as a grid with named axes, and the groups along them. Nothing else computes with rank numbers."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from train.layout import Layout

AXES = ("stage", "replicate", "shard")


class Grid:
    """Ranks by pipeline stage, copy of the weights and shard of the copy. Every rank must build it."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        shape = layout.num_stages, layout.replicas, layout.shards
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=AXES)
        self.stage = mesh.get_local_rank("stage")
        self.stage_group, self.shard_group = mesh.get_group("stage"), mesh.get_group("shard")
        data = mesh["replicate", "shard"]._flatten("data")
        self.dp_rank, self.dp_group = data.get_local_rank(), data.get_group()
        self.weights = mesh["replicate", "shard"] if layout.replicas > 1 else mesh["shard"]
        """What `fully_shard` spreads weights over: the last axis shards, one before it replicates."""
        self.ends_group = _ends_group(mesh) if layout.num_stages > 1 else None
        """The first and the last stage of this rank's pipeline; None in the middle, or if they are one."""


def ranks_of(layout: Layout, dp_rank: int) -> list[int]:
    """The ranks that put the sequences of one data-parallel rank through the model: one of each stage.

    >>> ranks_of(Layout("pipeline", 2, 3, 1, 4), 1)
    [1, 4]
    """
    return [stage * layout.dp_size + dp_rank for stage in range(layout.num_stages)]


def _ends_group(mesh: DeviceMesh) -> dist.ProcessGroup | None:
    ends = DeviceMesh(mesh.device_type, mesh.mesh[[0, -1]], mesh_dim_names=("end", *AXES[1:]))
    return ends.get_group("end") if ends.get_coordinate() is not None else None
