"""What an out-of-memory error is, and getting back the memory that one holds on to.

An error keeps the frames it went through alive, and with them every tensor in them: a second try without clearing them
starts with the memory of the first still taken.
"""

import errno
import gc
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

T = TypeVar("T")
Phase = Literal["forward", "backward", "compile", "other"]

CUDA_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
TEXTS = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory"
    r"|^std::bad_alloc$"
    r"|CUBLAS_STATUS_ALLOC_FAILED"
    r"|Output:.*(out of memory|virtual memory exhausted|Cannot allocate memory|Killed signal terminated program)",
    re.DOTALL,
)
"""What libraries say that raise no class of their own: torch's CPU allocator, C++, cuBLAS, a compiler of C++."""
BACKWARD = {torch.autograd.backward.__code__, torch.autograd.grad.__code__}
FORWARD = {nn.Module._call_impl.__code__}


@dataclass(frozen=True)
class Shortage:
    """That memory ran out: on which rank, in which phase of a step, and in whose words."""

    rank: int
    phase: Phase
    reason: str

    def __str__(self) -> str:
        return f"rank {self.rank} ran out of memory ({self.phase}: {self.reason})"


class StepOutOfMemory(Exception):  # noqa: N818
    """Memory ran out in a step, and every rank knows: nothing of the step is left, and it can be run again."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__(str(shortage))
        self.shortage = shortage


class RankOutOfMemory(Exception):  # noqa: N818
    """Memory ran out where the other ranks cannot be told: all ranks have to start again."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: that of a device, of the process or of the compiler, in `error` or in what it came of."""
    return any(map(_is_shortage, _chain(error)))


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY
    return isinstance(error, RuntimeError) and TEXTS.search(str(error)) is not None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came of. torch's compiler hides that from Python and keeps it as `inner_exception`."""
    one: BaseException | None = error
    seen = set[int]()
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        hidden = getattr(one, "inner_exception", None)
        one = hidden or one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def shortage_of(error: BaseException, rank: int) -> Shortage:
    """What an out-of-memory error says."""
    reason = next(one for one in _chain(error) if _is_shortage(one))
    lines = str(reason).strip().splitlines()
    return Shortage(rank, _phase(error), lines[0][:200] if lines else type(reason).__name__)


def _phase(error: BaseException) -> Phase:
    """Where an error came from, by the code that it went through."""
    errors = list(_chain(error))
    codes = {frame.f_code for one in errors for frame, _ in traceback.walk_tb(one.__traceback__)}
    if any(hasattr(one, "inner_exception") for one in errors):
        return "compile"
    if codes & BACKWARD:
        return "backward"
    return "forward" if codes & FORWARD else "other"


def release(error: BaseException, model: nn.Module) -> None:
    """Let go of all that `error` keeps alive, of the gradients, and of what a device's allocator has in store."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)
    forget_gradients(model)


def forget_gradients(model: nn.Module) -> None:
    """Drop what a step has left in the gradients, and give freed memory back to the device."""
    for parameter in model.parameters():
        parameter.grad = None
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def whole_or_nothing(work: Callable[[], T], model: nn.Module) -> T:
    """What `work` gives, on the only rank there is.

    Raises: StepOutOfMemory if memory ran out.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        shortage = shortage_of(error, 0)
        release(error, model)
    raise StepOutOfMemory(shortage)
