"""Large layouts checked without hardware: what each rank of a recipe would send and hold, driven and by formula."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from train.config import RunConfig
from train.dry_run import Seen, drive
from train.layout import Layout, lay_out
from train.memory import activation_bytes, state_bytes
from train.split import computed_costs, split_layers
from train.traffic import Traffic, step_traffic

HEADER = f"{'ranks':>5}  {'layout':<64} {'sent, GB':>9}  {'state, GiB':>10}  {'activations, GiB':>16}  formula"


@dataclass(frozen=True)
class Checked:
    """One layout, of its dearest stages."""

    layout: Layout
    sent_bytes: int
    """In a whole step, by formula."""
    state_bytes: int
    activation_bytes: int
    differences: list[str]
    """Where what was driven and what the formula says are apart."""

    def __str__(self) -> str:
        ranks = self.layout.num_stages * self.layout.dp_size
        sizes = f"{self.sent_bytes / 1e9:9.1f}  {self.state_bytes / 2**30:10.2f}  {self.activation_bytes / 2**30:16.2f}"
        return f"{ranks:5}  {self.layout!s:<64} {sizes}  {'; '.join(self.differences) or 'agrees'}"


def check_layouts(
    config: RunConfig, ranks: Sequence[int], stages: int, shard_size: int, microbatches: int
) -> Iterator[Checked]:
    """Every layout of `config` on each number of ranks, driven for at most so many microbatches (but one a stage)."""
    for world_size in ranks:
        for candidate in candidates(config, world_size, stages, shard_size):
            yield check(candidate, lay_out(candidate, world_size), microbatches)


def candidates(config: RunConfig, world_size: int, stages: int, shard_size: int) -> Iterator[RunConfig]:
    """Fully sharded; hybrid, where that is something else; a pipeline, replicated and fully sharded."""
    yield replace(config, strategy="fsdp", fsdp=replace(config.fsdp, shard_size=None))
    if world_size > shard_size:
        yield replace(config, strategy="fsdp", fsdp=replace(config.fsdp, shard_size=shard_size))
    pipeline = replace(config.pipeline, stages=stages, data_parallel="replicated")
    yield replace(config, strategy="pipeline", pipeline=pipeline)
    yield replace(
        config,
        strategy="pipeline",
        pipeline=replace(pipeline, data_parallel="sharded"),
        fsdp=replace(config.fsdp, shard_size=None),
    )


def check(config: RunConfig, layout: Layout, microbatches: int) -> Checked:
    """Drive one rank of every stage and compare."""
    parts = split_layers(
        config.model.num_hidden_layers, layout, computed_costs(config.model, config.data.sequence_length)
    )
    driven = replace(layout, microbatches=min(layout.microbatches, max(microbatches, layout.num_stages)))
    held = activation_bytes(config, driven, parts)
    seen = [drive(config, driven, stage) for stage in range(layout.num_stages)]
    if config.training.activation_checkpointing == "selective":
        seen = [
            replace(found, activation_bytes=held[stage]) for stage, found in enumerate(seen)
        ]  # it keeps them itself
    apart = [
        difference
        for stage, found in enumerate(seen)
        for difference in differences(
            stage,
            found,
            Seen(step_traffic(config, driven, parts, stage), state_bytes(config, driven, parts, stage), held[stage]),
        )
    ]
    return Checked(
        layout,
        max(step_traffic(config, layout, parts, stage).total() for stage in range(layout.num_stages)),
        max(found.state_bytes for found in seen),
        max(found.activation_bytes for found in seen),
        apart,
    )


def differences(stage: int, found: Seen, formula: Seen) -> Iterator[str]:
    """Bytes must be the same; what autograd keeps within a tenth."""
    if found.traffic != formula.traffic:
        yield f"stage {stage} sends {_bytes(found.traffic)}, formula {_bytes(formula.traffic)}"
    if found.state_bytes != formula.state_bytes:
        yield f"stage {stage} holds {found.state_bytes:,} B, formula {formula.state_bytes:,}"
    if abs(found.activation_bytes - formula.activation_bytes) > 0.1 * formula.activation_bytes:
        yield f"stage {stage} keeps {found.activation_bytes:,} B for backward, formula {formula.activation_bytes:,}"


def _bytes(traffic: Traffic) -> str:
    return " ".join(f"{kind} {size:,}" for kind, size in sorted(traffic.items()))
