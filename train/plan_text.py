"""A plan in words for people, and as plain data for programs."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from shared.terminal import counted
from train.bubble import theoretical_bubble
from train.estimate import START_S
from train.layout import num_parameters
from train.peak import ACCURACY, GIB
from train.plan import RUNTIME_BYTES, Plan, needed_bytes
from train.wording import duration

WIDTHS = (22, *8 * (13,))


def as_text(plan: Plan, num_tokens: int | None) -> str:
    """All that is known; `num_tokens` are those of a dataset."""
    return "\n".join([*_what(plan), *_memory(plan), *_time(plan, num_tokens), *_disk(plan)])


def as_data(plan: Plan) -> dict[str, Any]:
    """The same for programs, in bytes and seconds."""
    taken = plan.duration
    return {
        "layout": str(plan.layout),
        "parameters": num_parameters(plan.config.model),
        "microbatch": plan.config.microbatch,
        "largest_microbatch": plan.largest_microbatch,
        "stages": [
            {"layers": _layers(plan, stage), **held.parts(), "total": held.total, "needed": needed_bytes(held)}
            for stage, held in enumerate(plan.stages)
        ],
        "driven": None if plan.driven is None else asdict(plan.driven),
        "tokens_per_s": plan.speed.tokens_per_s,
        "speed_source": plan.speed.source,
        **asdict(taken),
        "checkpoint_bytes": plan.saved_bytes,
        "disk_bytes": plan.disk_bytes,
        "sent_bytes": plan.sent,
    }


def _what(plan: Plan) -> Iterator[str]:
    hardware, parameters = plan.hardware, num_parameters(plan.config.model)
    memory = hardware.memory_bytes / GIB
    yield f"{parameters / 1e6:,.0f}M parameters on {hardware.gpus} GPUs of {memory:g} GiB: {plan.layout}"


def _layers(plan: Plan, stage: int) -> list[list[int]]:
    return [[part.start, part.stop] for part in plan.parts[stage :: plan.layout.num_stages]]


def _memory(plan: Plan) -> Iterator[str]:
    """A line for each stage, its dearest moment part by part."""
    names = ["GiB at the peak", *plan.stages[0].parts(), "sum"]
    yield "".join(name.rjust(width) for name, width in zip(names, WIDTHS, strict=True))
    for stage, held in enumerate(plan.stages):
        layers = " ".join(f"{start}-{stop - 1}" for start, stop in _layers(plan, stage))
        cells = [f"stage {stage}, layers {layers}" if len(plan.stages) > 1 else "a rank"]
        cells += [f"{size / GIB:,.2f}" for size in (*held.parts().values(), held.total)]
        yield "".join(cell.rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    needed = max(needed_bytes(held) for held in plan.stages)
    yield (
        f"fits: {needed / GIB:.1f} of {plan.hardware.memory_bytes / GIB:g} GiB, with {ACCURACY:.0%} for what is not "
        f"known and {RUNTIME_BYTES / GIB:g} GiB for CUDA and NCCL (supposed); eager blocks, compiled ones keep less"
    )
    if plan.driven is not None:
        apart = plan.driven.formula_bytes / plan.driven.bytes - 1
        yield (
            f"driven: on {plan.hardware.gpus} ranks that do not exist, stage {plan.driven.stage} held at once what the "
            f"formula says to {abs(apart):.1%}"
        )
    yield f"microbatch: {plan.config.microbatch}; the largest that fits is {plan.largest_microbatch}"


def _time(plan: Plan, num_tokens: int | None) -> Iterator[str]:
    taken, layout = plan.duration, plan.layout
    yield f"speed: {plan.speed.tokens_per_s:,.0f} tokens/s, {taken.step_s:.3g} s a step, by {plan.speed.source}"
    if plan.config.strategy == "pipeline":
        schedule = plan.config.pipeline.schedule
        waits = theoretical_bubble(schedule, layout.num_stages, layout.parts, layout.microbatches)
        yield f"of a step its stages wait {waits:.1%}, if all parts take equally long: part of what MFU leaves"
    epochs = f", {taken.tokens / num_tokens:.2f} times the dataset" if num_tokens else ""
    yield f"target: {taken.steps:,} steps, {taken.tokens / 1e9:,.3g} billion tokens{epochs}"
    jobs = ""
    if taken.jobs is not None and taken.kept_s is not None:
        jobs = (
            f", {counted(taken.jobs, 'job')} of {duration(plan.hardware.walltime_s or 0)} (of each "
            f"{duration(START_S)} to start, supposed, and {duration(taken.kept_s)} kept for its last saves)"
        )
    yield f"time: {duration(taken.total_s)}, with validation and saves{jobs}"


def _disk(plan: Plan) -> Iterator[str]:
    checkpoint = plan.config.checkpoint
    copies = ", and as much of the machines' memory while it is written" if checkpoint.asynchronous else ""
    yield (
        f"disk: {plan.saved_bytes / 1e9:,.3g} GB a checkpoint{copies}; {plan.disk_bytes / 1e9:,.3g} GB for the "
        f"{checkpoint.keep} that are kept and the one being written"
    )
    kinds = ", ".join(f"{kind} {size / 1e9:,.3g}" for kind, size in sorted(plan.sent.items()))
    total = plan.sent.total() / 1e9
    yield f"network: {total:,.3g} GB a step from the rank that sends the most ({kinds or 'nothing'})"
