"""Causal attention of fp32 on a CPU that is not Intel's, within lower bounds, by flash.cpp, compiled on first use.

torch's own kernel asks MKL for many small products, which keeps to AVX2 there, and makes scores that are masked. Here
the blocks above the diagonal, and those below every bound, are not computed.

Source: Dao, FlashAttention-2, arXiv 2307.08691.

Legend: B sequences, T positions, H heads (fewer for keys and values), D head_dim.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from train.linear import lanes

SOURCES = [Path(__file__).with_name(name) for name in ("vectors.h", "flash.cpp")]
FLAGS = {16: ("-DLANES=16", "-mavx512f", "-mavx512dq", "-mfma"), 8: ("-DLANES=8", "-mavx2", "-mfma")}
HEAD_MULTIPLE = 16


def is_available(head_dim: int) -> bool:
    """Whether heads of this size can be attended to here: it takes such a CPU, no GPU, and a C++ compiler."""
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    if head_dim % HEAD_MULTIPLE or torch.cuda.is_available() or lanes() not in FLAGS:
        return False
    try:
        _load()
    except (CppCompileError, InvalidCxxCompiler):  # the blocks cannot be compiled either: that is reported
        return False
    return True


def _load() -> ctypes.CDLL:
    from torch._inductor.codecache import CppCodeCache

    source = "".join(path.read_text() for path in SOURCES)
    library: ctypes.CDLL = CppCodeCache.load(source, "cpu", extra_flags=FLAGS[lanes()])
    return library


_library = cache(_load)


def attend(q: Tensor, k: Tensor, v: Tensor, starts_BT: Tensor | None, window: int | None) -> Tensor:
    """(B, H, T, D): attention of each position to those from its document's start, `window` of them at most."""
    gathered: Tensor = torch.ops.argonne.flash(q, k, v, _lows(starts_BT, window))[0]
    return gathered


def _lows(starts_BT: Tensor | None, window: int | None) -> Tensor | None:
    """int32 (B, T): the first position that each may look at."""
    if starts_BT is None or window is None:
        return starts_BT
    places = torch.arange(starts_BT.shape[1], dtype=starts_BT.dtype, device=starts_BT.device)
    return torch.maximum(starts_BT, places - window + 1)


@torch.library.custom_op("argonne::flash", mutates_args=())
def _flash(q: Tensor, k: Tensor, v: Tensor, lows_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    out, log_sums_BHT = _empty(q), q.new_empty(q.shape[:3])
    q, k, v = (_rows(x) for x in (q, k, v))
    lows_BT = None if lows_BT is None else lows_BT.int().contiguous()
    _library().attend(*map(_address, (q, k, v, lows_BT, out, log_sums_BHT)), *_shape(q, k, (q, k, v, out)))
    return out, log_sums_BHT


@_flash.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lows_BT: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return _empty(q), q.new_empty(q.shape[:3])


@torch.library.custom_op("argonne::flash_backward", mutates_args=())
def _flash_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, lows_BT: Tensor | None, out: Tensor, log_sums_BHT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _empty(q), _empty(k).zero_(), _empty(v).zero_()
    gradient, q, k, v, out = (_rows(x) for x in (gradient, q, k, v, out))
    lows_BT = None if lows_BT is None else lows_BT.int().contiguous()
    tensors = q, k, v, lows_BT, out, log_sums_BHT.contiguous(), gradient, *gradients
    _library().attend_backward(*map(_address, tensors), *_shape(q, k, (q, k, v, out, gradient, *gradients)))
    return gradients


@_flash_backward.register_fake
def _(gradient, q, k, v, lows_BT, out, log_sums_BHT):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return _empty(q), _empty(k), _empty(v)


def _empty(x_BHTD: Tensor) -> Tensor:
    """Room for heads that lie beside each other at each position, as the projections around attention have them."""
    return torch.empty_like(x_BHTD.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _rows(x_BHTD: Tensor) -> Tensor:
    """With the elements of a head beside each other."""
    return x_BHTD if x_BHTD.stride(-1) == 1 else x_BHTD.contiguous()


def _address(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def _shape(q: Tensor, k: Tensor, heads: tuple[Tensor, ...]) -> tuple[object, ...]:
    """The last arguments of both functions: sizes, strides, the scale of scores, threads."""
    sizes = (*q.shape[:2], k.shape[1], *q.shape[2:])
    strides = [stride for x in heads for stride in x.stride()[:3]]
    scale = ctypes.c_float(q.shape[-1] ** -0.5)
    return _integers(sizes), _integers(strides), scale, torch.get_num_threads()


def _integers(values: tuple[int, ...] | list[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx, gradient: Tensor, _log_sums: Tensor):  # type: ignore[no-untyped-def]
    return (*torch.ops.argonne.flash_backward(gradient, *ctx.saved_tensors), None)


_flash.register_autograd(_differentiate, setup_context=_keep)
