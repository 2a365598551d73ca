"""What a run does, for those who look closer: a trace of some steps, a snapshot of a GPU's memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import profile, schedule

from shared.errors import ConfigError
from train.architecture import at_least

SKIPPED_STEPS = 2  # the first compiles, the second still warms up


def check_profiling(steps: int | None, memory_snapshot: bool) -> None:
    """Raises: ConfigError if no step would be profiled, or there is no memory that can be recorded."""
    if steps is not None:
        at_least("profile", steps, 1)
    if memory_snapshot and not torch.cuda.is_available():
        raise ConfigError(
            "memory-snapshot needs a GPU (torch records the memory of no other device), this is a CPU: "
            "use --profile, whose trace has every allocation"
        )


@contextmanager
def profiled(directory: Path, rank: int, steps: int | None, memory_snapshot: bool) -> Iterator[Callable[[], None]]:
    """Record what happens inside; what is given must be called after every step.

    `steps` steps after the first SKIPPED_STEPS go to profile-rank0.json, for chrome://tracing or ui.perfetto.dev; all
    allocations up to the end, be it an error, to memory-rank0.pickle, for pytorch.org/memory_viz.
    """
    if memory_snapshot:
        torch.cuda.memory._record_memory_history()
    try:
        if steps is None:
            yield lambda: None
        else:
            path = str(directory / f"profile-rank{rank}.json")
            phases = schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=steps, repeat=1)
            with profile(
                schedule=phases, profile_memory=True, on_trace_ready=lambda trace: trace.export_chrome_trace(path)
            ) as trace:
                yield trace.step
    finally:
        if memory_snapshot:
            torch.cuda.memory._dump_snapshot(str(directory / f"memory-rank{rank}.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
