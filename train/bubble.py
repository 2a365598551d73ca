"""Pure facts of the pipeline schedules: what each can do, how long its stages wait, how much they hold.

A stage is a rank's share of the pipeline; it holds one or more parts of the model, part p being on stage p % stages.
"""

from typing import Literal

from shared.errors import ConfigError
from train.architecture import nearest_multiple
from train.config import RunConfig

ScheduleName = Literal["1f1b", "interleaved-1f1b", "zero-bubble"]


def require_schedulable(config: RunConfig, stages: int, dp_size: int, microbatches: int) -> None:
    """Raises: ConfigError if the recipe's schedule cannot take that many stages, parts, layers or microbatches."""
    parts, schedule, layers = config.pipeline.parts_per_stage, config.pipeline.schedule, config.model.num_hidden_layers
    if schedule == "1f1b" and parts > 1:
        raise ConfigError(
            f"pipeline.schedule 1f1b has one part of the model on a rank, pipeline.stages_per_rank is {parts}: set it "
            "to 1, or take interleaved-1f1b or zero-bubble"
        )
    if schedule == "interleaved-1f1b" and parts == 1:
        raise ConfigError(
            "pipeline.schedule interleaved-1f1b with pipeline.stages_per_rank 1 is 1f1b: set that to 2 or more, or "
            "take 1f1b or zero-bubble"
        )
    if parts > 1 and stages == 1:
        raise ConfigError(
            f"pipeline.stages_per_rank {parts} needs at least 2 pipeline stages, there is 1: raise NPROC or "
            "pipeline.stages, or take pipeline.schedule 1f1b with 1"
        )
    if stages * parts > layers:
        raise ConfigError(_too_many(stages, parts, layers))
    if microbatches < stages or (schedule != "1f1b" and microbatches % _rounds(stages, microbatches)):
        raise ConfigError(_does_not_fill(config, stages, dp_size, microbatches))


def _too_many(stages: int, parts: int, layers: int) -> str:
    if parts == 1:
        return (
            f"{stages} pipeline stages are too many for model.num_hidden_layers {layers}: set --pipeline.stages to at "
            "most that; the other ranks then share the global batch"
        )
    return (
        f"{stages} pipeline stages of {parts} parts are too many for model.num_hidden_layers {layers}: set "
        f"pipeline.stages_per_rank to at most {max(layers // stages, 1)}, or pipeline.stages to at most "
        f"{max(layers // parts, 1)}"
    )


def _does_not_fill(config: RunConfig, stages: int, dp_size: int, microbatches: int) -> str:
    batch, microbatch = config.data.global_batch, config.microbatch
    if microbatches < stages:
        return (
            f"{microbatches} microbatches cannot fill {stages} pipeline stages ({config.pipeline.schedule} needs at "
            f"least one for each): lower training.microbatch {microbatch} or raise data.global_batch {batch}"
        )
    return (
        f"{microbatches} microbatches do not divide into {_rounds(stages, microbatches)} equal rounds for {stages} "
        f"pipeline stages, as pipeline.schedule {config.pipeline.schedule} wants: "
        f"{nearest_multiple(microbatches, stages)} do, with data.global_batch "
        f"{nearest_multiple(microbatches, stages) * dp_size * microbatch}"
    )


def _rounds(stages: int, microbatches: int) -> int:
    return max(microbatches // stages, 1)


def theoretical_bubble(schedule: ScheduleName, stages: int, parts: int, microbatches: int) -> float:
    """Share of a step that a stage waits, if all parts take equally long.

    A stage waits once for each stage before or behind it: for a forward and a backward pass of one part, or, where the
    gradients of the weights fill the gap, for a third of that.

    Source: Narayanan et al., arXiv 2104.04473, section 2.2; Qi et al., arXiv 2401.10241, table 2.

    >>> theoretical_bubble("1f1b", 4, 1, 8), theoretical_bubble("zero-bubble", 4, 1, 8)
    (0.2727272727272727, 0.1111111111111111)
    """
    work = parts * microbatches * (3 if schedule == "zero-bubble" else 1)
    return (stages - 1) / (work + stages - 1)


def held_parts(schedule: ScheduleName, stages: int, parts: int, microbatches: int, stage: int) -> int:
    """Forward passes of a part, of one microbatch each, whose activations a stage holds at its peak.

    >>> [held_parts("1f1b", 4, 1, 8, stage) for stage in range(4)]
    [4, 3, 2, 1]
    >>> [held_parts("interleaved-1f1b", 4, 2, 8, stage) for stage in range(4)]
    [11, 9, 7, 5]
    """
    behind = stages - 1 - stage
    if schedule == "1f1b":
        return min(microbatches, behind + 1)
    earlier_parts = (parts - 1) * (microbatches // _rounds(stages, microbatches))
    waiting = behind + stage if schedule == "zero-bubble" else 2 * behind  # zero-bubble: for the weights' gradients
    return min(parts * microbatches, earlier_parts + waiting + 1)
