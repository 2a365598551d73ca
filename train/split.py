"""Pure: which layers each part of a pipeline holds, such that its stages take equally long."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import ConfigError
from train.architecture import ArgonneConfig
from train.layout import Layout, block_multiplications


@dataclass(frozen=True)
class Costs:
    """What the forward and backward pass of one microbatch takes, in one unit for all."""

    block: float
    embedding: float
    """Of the first part, beside its blocks."""
    head: float
    """Of the last part, beside its blocks: the last norm, the logits and the loss."""


def computed_costs(config: ArgonneConfig, length: int) -> Costs:
    """Multiplications of one token; the embedding is the copy of a row."""
    return Costs(block_multiplications(config, length), config.hidden_size, config.vocab * config.hidden_size)


def split_layers(
    num_layers: int, layout: Layout, costs: Costs, most_layers: Sequence[int] | None = None
) -> list[range]:
    """The layers of each part, in their order; every part has at least one.

    No other split has a cheaper dearest stage; within a stage, none has a cheaper dearest part. `most_layers` is how
    many layers each stage has memory for.

    Raises: ConfigError if no split keeps to `most_layers`.

    >>> split_layers(8, Layout("pipeline", 2, 1, 1, 4), Costs(block=1, embedding=0, head=3))
    [range(0, 5), range(5, 8)]
    >>> split_layers(8, Layout("pipeline", 2, 1, 1, 4, parts=2), Costs(block=1, embedding=0, head=3))
    [range(0, 2), range(2, 4), range(4, 7), range(7, 8)]
    """
    extras = [0.0] * layout.num_parts
    extras[0] += costs.embedding
    extras[-1] += costs.head
    stages = [range(stage, layout.num_parts, layout.num_stages) for stage in range(layout.num_stages)]
    of_stage = _share_out(
        num_layers, costs.block, [sum(extras[part] for part in parts) for parts in stages], layout.parts, most_layers
    )
    of_part = [0] * layout.num_parts
    for parts, count in zip(stages, of_stage, strict=True):
        for part, layers in zip(parts, _share_out(count, costs.block, [extras[p] for p in parts], 1), strict=True):
            of_part[part] = layers
    ends = [sum(of_part[: part + 1]) for part in range(layout.num_parts)]
    return [range(first, end) for first, end in zip((0, *ends), ends, strict=False)]


def _share_out(
    num_layers: int, block: float, extras: Sequence[float], least: int, most: Sequence[int] | None = None
) -> list[int]:
    """Layers of each of several holders that cost `extras` without any: one more for the cheapest, again and again.

    Of equally cheap ones the last gets it, which holds the fewest activations.
    """
    counts = [least] * len(extras)
    for _ in range(num_layers - sum(counts)):
        free = [holder for holder, count in enumerate(counts) if most is None or count < most[holder]]
        if not free:
            raise ConfigError(
                f"{num_layers} layers do not fit in the memory of {len(counts)} pipeline stages: use more stages, "
                "pipeline.data_parallel sharded, or a smaller training.microbatch"
            )
        counts[min(free, key=lambda holder: (extras[holder] + counts[holder] * block, -holder))] += 1
    return counts
