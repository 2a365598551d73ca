"""Pipeline parallelism: every rank holds a stage, and microbatches flow through the stages one forward, one backward.

With more ranks than stages there are several pipelines side by side, which share the global batch: ranks that hold
the same stage add up their gradients.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from train.building import build_model
from train.config import RunConfig
from train.data import Batch
from train.layout import Layout, split_layers
from train.model import EMBEDDING, Part
from train.strategy import clip_gradients, evaluating, materialize, precision_context, squared_norm


class PipelineStrategy:
    """`torch.distributed.pipelining` with 1F1B microbatches over stages split by cost."""

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device) -> None:
        self.config, self.layout, self.device = config, layout, device
        shape = (layout.num_stages, layout.dp_size)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("stage", "data"))
        stage = mesh.get_local_rank("stage")
        self.dp_rank = mesh.get_local_rank("data")
        self.dp_group = mesh.get_group("data")
        self.stage_group = mesh.get_group("stage")
        self.tied_group = _tied_group(config, mesh)

        layers = split_layers(config.model, layout.num_stages, config.data.sequence_length)[stage]
        part = Part(layers, is_first=stage == 0, is_last=stage == layout.num_stages - 1)
        self.model = build_model(config, part)
        materialize(self.model, config, device)
        pipeline_stage = PipelineStage(self.model, stage, layout.num_stages, device, group=self.stage_group)
        self.schedule = Schedule1F1B(pipeline_stage, layout.microbatches, loss_fn=self._loss, scale_grads=False)
        self.num_targets = 1

    def forward_backward(self, batch: Batch) -> Tensor:
        """See Strategy."""
        total = self._run(self.schedule.step, batch)
        self._add_up_gradients()
        return total

    def evaluate(self, batch: Batch) -> Tensor:
        """See Strategy."""
        with evaluating(self.model):
            return self._run(self.schedule.eval, batch)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """See Strategy."""
        total = squared_norm(self._owned_parameters(), self.device)
        dist.all_reduce(total, group=self.stage_group)
        norm = total.sqrt()
        clip_gradients(self.model.parameters(), norm, max_norm)
        return norm

    def _run(self, step: Callable[..., object], batch: Batch) -> Tensor:
        """Put the batch through the schedule; the sum of all pipelines' losses, on every rank."""
        part, losses = self.model.part, list[Tensor]()
        self.num_targets = batch.num_targets
        with precision_context(self.config, self.device):
            step(
                *([batch.inputs_BT] if part.is_first else []),
                **({"targets_BT": batch.targets_BT} if part.is_last else {}),  # the last stage's output is its loss
                **({} if batch.starts_BT is None else {"starts_BT": batch.starts_BT}),
                target=batch.targets_BT if part.is_last else None,
                losses=losses if part.is_last else None,
                return_outputs=False,
            )
        total = torch.stack([loss.detach() for loss in losses]).sum() if losses else torch.zeros((), device=self.device)
        dist.all_reduce(total)
        return total

    def _loss(self, loss: Tensor, targets_BT: Tensor) -> Tensor:
        del targets_BT  # the model has seen them
        return loss / self.num_targets

    def _add_up_gradients(self) -> None:
        """A tied head's gradient goes to the embedding it is tied to; then the pipelines' gradients are added."""
        if self.tied_group is not None and hasattr(self.model, "embed_tokens"):
            dist.all_reduce(_gradient(self.model.embed_tokens.weight), group=self.tied_group)
        if self.layout.dp_size > 1:
            works = [
                dist.all_reduce(_gradient(parameter), group=self.dp_group, async_op=True)
                for parameter in self.model.parameters()
            ]
            for work in works:
                work.wait()

    def _owned_parameters(self) -> list[nn.Parameter]:
        """Parameters that no earlier stage holds: a tied head's weight counts on the first stage."""
        is_copy = self.tied_group is not None and not self.model.part.is_first
        return [p for name, p in self.model.named_parameters() if not (is_copy and name == EMBEDDING)]


def _tied_group(config: RunConfig, mesh: DeviceMesh) -> dist.ProcessGroup | None:
    """The first and the last stage of this rank's pipeline, if they share a weight; every rank must call it."""
    if not config.model.tie_word_embeddings or mesh.size(0) == 1:
        return None
    column = mesh.get_local_rank("data")
    ends = [mesh.mesh[[0, -1], number].tolist() for number in range(mesh.size(1))]
    groups = [dist.new_group(ranks) for ranks in ends]
    group: dist.ProcessGroup = groups[column]
    return group


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every parameter of a stage is used in its forward pass"
    return parameter.grad
