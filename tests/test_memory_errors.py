"""Which errors are a lack of memory, and that nothing stays of one."""

import errno
import weakref

import pytest
import torch
from torch import nn
from torch._inductor.exc import CppCompileError, InductorError

from train.memory_errors import Shortage, StepOutOfMemory, is_out_of_memory, release, shortage_of, whole_or_nothing


def too_large():
    torch.empty(1 << 50)


def raised(work):
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def caused_by(error, cause):
    error.__cause__ = cause
    return error


def while_handling(error, context):
    error.__context__ = context
    return error


def without_context(error, context):
    error.__context__ = context
    error.__suppress_context__ = True
    return error


OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


@pytest.mark.parametrize(
    "error",
    [
        OOM,
        raised(too_large),  # the real one
        raised(lambda: bytearray(1 << 60)),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        caused_by(RuntimeError("[Stage 1] failed to run forward"), OOM),
        while_handling(RuntimeError("backward"), caused_by(RuntimeError("inner"), OOM)),
        InductorError(OOM, None),
        InductorError(CppCompileError(["g++", "x.cpp"], "cc1plus: out of memory allocating 65536 bytes"), None),
        InductorError(CppCompileError(["g++"], "g++: fatal error: Killed signal terminated program cc1plus"), None),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:30]}",
)
def test_a_lack_of_memory_is_seen_as_one(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of memory is what this message is about, but not what happened"),
        RuntimeError("Connection closed by peer"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("std::bad_alloc"),
        InductorError(CppCompileError(["g++", "-o", "x.so"], "x.cpp:1: error: expected ';'"), None),
        without_context(ValueError("another thing"), OOM),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:30]}",
)
def test_nothing_else_is(error):
    assert not is_out_of_memory(error)


class Failing(nn.Module):
    """Runs out of memory where it is told to."""

    def __init__(self, where):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.where, self.large = where, None

    def forward(self, x):
        large = x * self.weight
        self.large = weakref.ref(large)
        if self.where == "forward":
            too_large()
        if self.where == "backward":
            large.register_hook(lambda gradient: too_large())
        if self.where == "compile":
            raise InductorError(OOM, None)
        return large.sum()


@pytest.mark.parametrize("where", ["forward", "backward", "compile"])
def test_it_is_told_where_memory_ran_out(where):
    shortage = shortage_of(raised(lambda: Failing(where)(torch.ones(3)).backward()), 3)
    assert (shortage.rank, shortage.phase) == (3, where)
    assert "allocate" in shortage.reason
    assert str(Shortage(3, where, "full")) == f"rank 3 ran out of memory ({where}: full)"
    assert shortage_of(MemoryError(), 0) == Shortage(0, "other", "MemoryError")


def test_nothing_that_the_error_held_is_held_afterwards():
    model = Failing("forward")
    model.weight.grad = torch.ones(3)
    error = raised(lambda: model(torch.ones(3)).backward())
    assert model.large() is not None, "the frames of the error hold it"
    release(error, model)
    assert model.large() is None
    assert model.weight.grad is None


def test_another_error_passes_and_a_lack_of_memory_becomes_one_that_all_ranks_know():
    with pytest.raises(ZeroDivisionError):
        whole_or_nothing(lambda: 1 // 0, nn.Linear(1, 1))
    with pytest.raises(StepOutOfMemory, match=r"rank 0 ran out of memory \(other: .*DefaultCPUAllocator"):
        whole_or_nothing(too_large, nn.Linear(1, 1))
    assert whole_or_nothing(lambda: 3, nn.Linear(1, 1)) == 3
