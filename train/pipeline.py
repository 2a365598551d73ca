"""Pipeline parallelism: every rank holds a stage, and microbatches flow through the stages by a schedule.

With more ranks than stages there are several pipelines side by side, which share the global batch: the ranks that hold
the same stage add up their gradients, and hold its weights each in full or each a shard.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.pipelining import Schedule1F1B, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from train.bubble import theoretical_bubble
from train.building import build_model
from train.collective import gather
from train.compilation import compiled_share
from train.config import RunConfig
from train.costs import choose_split
from train.data import Batch
from train.drain import Drain
from train.fsdp import reshard, shard
from train.grid import Grid
from train.layout import Layout
from train.memory_errors import StepOutOfMemory, forget_gradients
from train.model import EMBEDDING, ArgonneModel, Part
from train.stage import Stage, Stopwatch
from train.strategy import (
    clip_gradients,
    evaluating,
    local,
    materialize,
    precision_context,
    squared_norm,
)

SCHEDULES: dict[str, Callable[..., Any]] = {
    "1f1b": lambda stages, *arguments, **named: Schedule1F1B(stages[0], *arguments, **named),
    "interleaved-1f1b": ScheduleInterleaved1F1B,
    "zero-bubble": ScheduleInterleavedZeroBubble,  # ZBV waits no less, and wants two equal parts on every rank
}


class PipelineStrategy:
    """`torch.distributed.pipelining` over stages split by cost."""

    def __init__(self, config: RunConfig, layout: Layout, device: torch.device, grid: Grid) -> None:
        self.config, self.layout, self.device = config, layout, device
        self.dp_rank, self.dp_group = grid.dp_rank, grid.dp_group
        self.stage_group, self.shard_group = grid.stage_group, grid.shard_group
        self.is_sharded = layout.shards > 1
        self.tied_group = grid.ends_group if config.model.tie_word_embeddings else None

        self.split, self.costs = choose_split(config, layout, device)
        self.numbers = range(grid.stage, layout.num_parts, layout.num_stages)
        self.parts = [self._build_part(number, grid.weights) for number in self.numbers]
        self.model = _merged(self.parts)
        self.num_targets = 1
        self.use_microbatch(config, layout)

    def use_microbatch(self, config: RunConfig, layout: Layout) -> None:
        """See Strategy. Stages and their schedule are of one shape; the modules in them stay."""
        self.config, self.layout = config, layout
        self.stopwatch, self.step_clock = Stopwatch(self.device), Stopwatch(self.device)
        self.drain = Drain(is_possible=not self.is_sharded)
        self.schedule = SCHEDULES[config.pipeline.schedule](
            [self._build_stage(number, part) for number, part in zip(self.numbers, self.parts, strict=True)],
            layout.microbatches,
            loss_fn=self._loss,
            scale_grads=False,
        )
        self.drain.losses = self.schedule._internal_losses

    def forward_backward(self, batch: Batch) -> Tensor:
        """See Strategy."""
        total = self._total(self.step_clock.run(self._run, self.schedule.step, batch))
        self._add_up_gradients()
        return total

    def evaluate(self, batch: Batch) -> Tensor:
        """See Strategy."""
        with evaluating(self.model):
            mine = self._run(self.schedule.eval, batch)
        self.stopwatch.spans.clear()
        for part in self.parts:
            reshard(part)
        return self._total(mine)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """See Strategy."""
        total = squared_norm(self._owned_parameters(), self.device)
        dist.all_reduce(total, group=self.shard_group)
        dist.all_reduce(total, group=self.stage_group)
        norm = total.sqrt().float()
        clip_gradients(self.model.parameters(), norm, max_norm)
        return norm

    def step_metrics(self) -> dict[str, float]:
        """See Strategy. `bubble`: the share of the schedule's time that ranks did not compute, their mean.

        `compiled`: as SingleStrategy's, the mean over ranks.
        """
        busy_s, step_s = self.stopwatch.seconds(), self.step_clock.seconds()
        told = torch.tensor([1.0 - busy_s / step_s, compiled_share(self.parts)])
        dist.all_reduce(told)
        bubble, compiled = (told / dist.get_world_size()).tolist()
        layout, schedule = self.layout, self.config.pipeline.schedule
        theory = theoretical_bubble(schedule, layout.num_stages, layout.parts, layout.microbatches)
        found = {"bubble": bubble, "bubble_theoretical": theory}
        return found | ({"compiled": compiled} if self.config.training.compile else {})

    def facts(self) -> dict[str, Any]:
        """See Strategy."""
        return {"layers": [[part.start, part.stop] for part in self.split], **vars(self.costs)}

    def _build_part(self, number: int, weights: DeviceMesh) -> ArgonneModel:
        is_last = number == self.layout.num_parts - 1
        model = build_model(self.config, Part(self.split[number], number == 0, is_last))
        if self.is_sharded:
            shard(model, weights, self.config, reshards=False)  # the gradients of weights come at any later time
        materialize(model, self.config, self.device)
        return model

    def _build_stage(self, number: int, part: ArgonneModel) -> Stage:
        """With the shapes of what it takes and gives, so that the ranks need not ask each other."""
        size = self.config.microbatch, self.config.data.sequence_length
        hidden = torch.empty(*size, self.config.model.hidden_size, device="meta", requires_grad=True)
        ids, loss = (
            torch.empty(size, dtype=torch.long, device="meta"),
            torch.empty((), device="meta", requires_grad=True),
        )
        return Stage(
            self.stopwatch,
            self.drain,
            part,
            number,
            self.layout.num_parts,
            self.device,
            input_args=ids if part.part.is_first else hidden,
            output_args=loss if part.part.is_last else hidden,
            group=self.stage_group,
        )

    def _run(self, step: Callable[..., object], batch: Batch) -> Tensor:
        """Put the batch through the schedule; this rank's share of the mean loss."""
        is_first, is_last = self.parts[0].part.is_first, self.parts[-1].part.is_last
        losses = list[Tensor]()
        self.num_targets = batch.num_targets
        named = {"targets_BT": batch.targets_BT} if is_last else {}  # the last part's output is its loss
        if batch.starts_BT is not None:
            named["starts_BT"] = batch.starts_BT
        with precision_context(self.config, self.device):
            step(
                *([batch.inputs_BT] if is_first else []),
                **named,
                target=batch.targets_BT if is_last else None,
                losses=losses if is_last else None,
                return_outputs=False,
            )
        if not losses:
            return torch.zeros((), device=self.device)
        return torch.stack([loss.detach() for loss in losses]).sum() / self._averaged_over

    def _total(self, mine: Tensor) -> Tensor:
        """The sum of all ranks' shares of the loss, told together with whether memory ran out on one.

        Raises: StepOutOfMemory if it did, on every rank alike.
        """
        told = torch.stack((mine, mine.new_full((), float(self.drain.shortage is not None))))
        dist.all_reduce(told)
        if self._is_set(told[1]):
            forget_gradients(self.model)
            raise StepOutOfMemory(next(filter(None, gather(self.drain.shortage))))
        return told[0]

    def _is_set(self, flag: Tensor) -> bool:
        return bool(flag)

    @property
    def _averaged_over(self) -> int:
        """Ranks that gradients are averaged over where they should be added up."""
        return self.layout.dp_size if self.is_sharded else 1

    def _loss(self, loss: Tensor, targets_BT: Tensor) -> Tensor:
        del targets_BT  # the model has seen them
        return loss / self.num_targets * self._averaged_over

    def _add_up_gradients(self) -> None:
        """A tied head's gradient goes to the embedding it is tied to; then the pipelines' gradients are added.

        Where the weights are sharded, the schedule has added them up already.
        """
        if self.tied_group is not None:
            dist.all_reduce(_gradient(self.model.get_parameter(EMBEDDING)), group=self.tied_group)
        if self.layout.dp_size > 1 and not self.is_sharded:
            works = [
                dist.all_reduce(_gradient(parameter), group=self.dp_group, async_op=True)
                for parameter in self.model.parameters()
            ]
            for work in works:
                work.wait()

    def _owned_parameters(self) -> list[nn.Parameter]:
        """Parameters that no earlier stage holds: a tied head's weight counts on the first stage."""
        is_copy = self.tied_group is not None and not self.parts[0].part.is_first
        return [p for name, p in self.model.named_parameters() if not (is_copy and name == EMBEDDING)]


def _merged(parts: list[ArgonneModel]) -> nn.Module:
    """One module with the modules of all parts, under the names they have in the whole model."""
    whole = nn.Module()
    for part in parts:
        for name, module in part.named_children():
            if name != "blocks":
                setattr(whole, name, module)
    whole.blocks = nn.ModuleDict({name: block for part in parts for name, block in part.blocks.items()})
    return whole


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every parameter of a stage is used in its forward pass"
    return local(parameter.grad)
