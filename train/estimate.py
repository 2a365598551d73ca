"""Pure: how fast ranks will train, and how long it takes them, from a speed that was stated or measured."""

import math
from dataclasses import dataclass

from shared.errors import ConfigError
from train.config import RunConfig
from train.deadline import SAVE_BYTES_PER_S, Pace, guessed_save_s
from train.layout import flops_per_token
from train.memory import saved_bytes

PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "a100": {"fp32": 19.5, "bf16": 312},
    "h100": {"fp32": 67, "bf16": 989, "float8": 1979},
    "h200": {"fp32": 67, "bf16": 989, "float8": 1979},
    "b200": {"fp32": 80, "bf16": 2250, "float8": 4500},
    "l40s": {"fp32": 91.6, "bf16": 362, "float8": 733},
    "mi300x": {"fp32": 163.4, "bf16": 1307, "float8": 2615},
}
"""Of dense matrix products, as the vendors' data sheets have them (SXM and OAM). A product that is measured gets to 0.6
to 0.8 of it, so that the `mfu` of a run, a share of a measured product, is higher than a share of these."""
START_S = 120.0
"""From a job's first moment to its first step, with compiling: what is supposed."""
VALIDATION_SHARE = 1 / 3
"""Of what a training step takes, for as many tokens: the forward pass alone."""


@dataclass(frozen=True)
class Speed:
    """What ranks do in a second."""

    tokens_per_s: float
    source: str
    """Where that is from."""
    save_bytes_per_s: float = SAVE_BYTES_PER_S


@dataclass(frozen=True)
class Duration:
    """How long a run takes, in all and in jobs that end."""

    steps: int
    tokens: int
    step_s: float
    total_s: float
    """Of training, validation and saves."""
    job_s: float | None = None
    """Of a job's walltime, what goes into training."""
    kept_s: float | None = None
    """What it keeps for its last step and two saves."""
    jobs: int | None = None


def peak_flops(gpu: str, precision: str) -> float:
    """Floating-point operations a second of a GPU, by its data sheet.

    Raises: ConfigError for one that is not known, or has no such precision.
    """
    if gpu not in PEAK_TFLOPS:
        raise ConfigError(
            f"gpu {gpu!r} is not known: one of {', '.join(PEAK_TFLOPS)} is wanted, or the speed of a run by --measured"
        )
    if precision not in PEAK_TFLOPS[gpu]:
        raise ConfigError(f"gpu {gpu} does not multiply in {precision}: {', '.join(PEAK_TFLOPS[gpu])} is wanted")
    return PEAK_TFLOPS[gpu][precision] * 1e12


def stated_speed(config: RunConfig, ranks: int, gpu: str, mfu: float) -> Speed:
    """Of ranks that do a stated share of their GPU's peak, with all waiting in it.

    Raises: ConfigError if that is no share, or nothing is known of the GPU.
    """
    if not 0 < mfu <= 1:
        raise ConfigError(f"mfu {mfu} is out of range: more than 0 and at most 1 is wanted")
    peak = peak_flops(gpu, config.training.precision)
    flops = flops_per_token(config.model, config.data.sequence_length)
    source = f"an MFU of {mfu:.0%} of {peak / 1e12:,g} TFLOP/s ({gpu}, {config.training.precision})"
    return Speed(ranks * mfu * peak / flops, source)


def duration(config: RunConfig, speed: Speed, walltime_s: float | None) -> Duration:
    """Of the whole run; in jobs of `walltime_s`, each of which begins anew and stops in time to be saved.

    Raises: ConfigError if a job is too short for a single step.
    """
    steps = config.total_steps
    tokens = config.data.global_batch * config.data.sequence_length
    step_s = tokens / speed.tokens_per_s
    save_s = guessed_save_s(saved_bytes(config), speed.save_bytes_per_s)
    total_s = steps * (step_s + validation_s(config, speed) + waiting_s(config, step_s, save_s))
    if walltime_s is None:
        return Duration(steps, steps * tokens, step_s, total_s)
    pace = Pace(save_s)
    pace.stepped(step_s)
    kept_s = pace.needed_s(config.recovery.deadline_margin_s)
    job_s = walltime_s - START_S - kept_s
    if job_s < step_s:
        raise ConfigError(
            f"walltime of {walltime_s:,.0f} s is too short: {START_S:.0f} s to start, {kept_s:,.0f} s for two saves "
            f"and the last step, {step_s:,.1f} s for each step: at least {START_S + kept_s + step_s:,.0f} s are wanted"
        )
    return Duration(steps, steps * tokens, step_s, total_s, job_s, kept_s, math.ceil(total_s / job_s))


def validation_s(config: RunConfig, speed: Speed) -> float:
    """Seconds of validation for each step, on average."""
    every = config.training.validate_every or config.total_steps
    tokens = config.data.validation_chunks * config.data.sequence_length
    return VALIDATION_SHARE * tokens / speed.tokens_per_s / every


def waiting_s(config: RunConfig, step_s: float, save_s: float) -> float:
    """Seconds that saving holds up each step, on average: all of it, or what the next save has to wait for.

    A save in the background is waited for if it takes longer than the steps to the next.
    """
    every = config.checkpoint.every or config.total_steps
    if config.checkpoint.asynchronous:
        return max(save_s - every * step_s, 0.0) / every
    return save_s / every
