"""The learning rate of every step, as a pure function of the recipe: no schedule has a state that could be lost."""

import math
from collections.abc import Callable

from train.config import OptimizerConfig, RunConfig

RESCHEDULING = {
    *("training.total_steps", "training.total_tokens", "optimizer.schedule", "optimizer.cooldown_fraction"),
}
"""What may differ when a run is continued if every step that it has done keeps its learning rate."""


def learning_rate(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` completed ones.

    Linear from the minimum to the peak over the warmup, then as `config.schedule` says until `total_steps`.

    >>> config = OptimizerConfig(learning_rate=3.0, min_learning_rate=1.0, warmup_steps=10)
    >>> [learning_rate(config, 110, step) for step in (0, 5, 10, 60, 110, 500)]
    [1.0, 2.0, 3.0, 2.0, 1.0, 1.0]
    """
    low, high = config.min_learning_rate, config.learning_rate
    if step < config.warmup_steps:
        return low + (high - low) * step / config.warmup_steps
    share = _SHAPES[config.schedule](config, total_steps, min(step, total_steps))
    return low + (high - low) * share if share < 1 else high  # the sum may be a bit more


def learning_rates(config: OptimizerConfig, total_steps: int, step: int) -> dict[str, float]:
    """The schedule's learning rate and what it is for each group of parameters, as they stand in the metrics.

    >>> config = OptimizerConfig(learning_rate=2.0, warmup_steps=0, embedding_learning_rate_factor=3.0)
    >>> learning_rates(config, 100, 0)
    {'lr': 2.0, 'lr_matrices': 2.0, 'lr_embeddings': 6.0, 'lr_vectors': 2.0}
    """
    rate = learning_rate(config, total_steps, step)
    embeddings = rate * config.embedding_learning_rate_factor
    return {"lr": rate, "lr_matrices": rate, "lr_embeddings": embeddings, "lr_vectors": rate}


def _cosine(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """Half a cosine from 1 to 0. Source: Loshchilov and Hutter, SGDR, arXiv 1608.03983."""
    done = max(step - config.warmup_steps, 0) / max(
        total_steps - config.warmup_steps, 1
    )  # a warmup may outlast the run
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def _constant(config: OptimizerConfig, total_steps: int, step: int) -> float:
    del config, total_steps, step
    return 1.0


def _warmup_stable_decay(config: OptimizerConfig, total_steps: int, step: int) -> float:
    """1 until the cooldown begins, then linear to 0: until then, no step depends on where the run will end.

    Source: Hu et al., MiniCPM, arXiv 2404.06395; Haegele et al., arXiv 2405.18392, for the linear shape.
    """
    begin = cooldown_begin(config, total_steps)
    return 1.0 if step <= begin else (total_steps - step) / (total_steps - begin)


_SHAPES: dict[str, Callable[[OptimizerConfig, int, int], float]] = {
    "cosine": _cosine,
    "constant": _constant,
    "wsd": _warmup_stable_decay,
}


def cooldown_begin(config: OptimizerConfig, total_steps: int) -> int:
    """The last completed step at which schedule wsd is still at its peak; a cooldown never cuts the warmup short.

    >>> cooldown_begin(OptimizerConfig(warmup_steps=10, cooldown_fraction=0.2), 100)
    80
    """
    return max(total_steps - round(config.cooldown_fraction * total_steps), config.warmup_steps)


def why_not_annealed(config: RunConfig, last_step: int) -> str | None:
    """Why the learning rate will not be at its minimum when the run ends at `last_step`; None if it will be."""
    options, total_steps = config.optimizer, config.total_steps
    if options.warmup_steps > total_steps:
        return (
            f"optimizer.warmup_steps {options.warmup_steps} is longer than the horizon of {total_steps} steps: the "
            "learning rate never reaches its peak; shorten it, or raise training.total_steps or training.total_tokens"
        )
    if learning_rate(options, total_steps, total_steps) >= options.learning_rate:
        return (
            f"the learning rate never falls (schedule {options.schedule}, {options.learning_rate:g} to the end): a "
            "model is better after a cooldown; choose schedule wsd or cosine, or continue this run with wsd"
        )
    if last_step < total_steps:
        rate = learning_rate(options, total_steps, last_step)
        return (
            f"stop-step {last_step} is before the horizon of {total_steps} steps: the run ends at a learning rate of "
            f"{rate:.3g}, not annealed to {options.min_learning_rate:.3g}; start it again to go on"
        )
    return None


def first_difference(before: RunConfig, after: RunConfig, num_steps: int) -> int | None:
    """The first of the steps 1 to `num_steps` that would have had another learning rate; None if there is none."""
    for step in range(num_steps):
        rates = (learning_rate(config.optimizer, config.total_steps, step) for config in (before, after))
        if len(set(rates)) > 1:
            return step + 1
    return None
