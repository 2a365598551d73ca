"""Matrix products of fp32 on a CPU, by whichever library is the faster one there.

torch multiplies fp32 with MKL, which keeps to AVX2 on a CPU that is not Intel's. oneDNN, which is in every torch too,
uses the AVX-512 that is there: more than twice as fast on an AMD EPYC (Zen 5). Which one is a fact of the CPU, never of
a measurement, so a run that continues on the same machine computes the same bits. With AVX2 alone they are as fast as
each other but for logits, which oneDNN makes a tenth faster; see loss.py.

Legend: R rows, K inputs, N outputs.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula


class Linear(nn.Linear):
    """nn.Linear, by `multiply`."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.may_use_onednn = not bias and has_unused_avx512()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """(..., N) of (..., K)."""
        if not (self.may_use_onednn and is_plain_fp32(input, self.weight)):
            return F.linear(input, self.weight, self.bias)
        result: Tensor = torch.ops.argonne.multiply(input.flatten(0, -2), self.weight)
        return result.view(*input.shape[:-1], -1)


def is_plain_fp32(x: Tensor, weight: Tensor) -> bool:
    """Whether these two are multiplied in fp32 on the CPU."""
    is_fp32 = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return is_fp32 and not torch.is_autocast_enabled("cpu")


@cache
def lanes() -> int:
    """Floats in a vector of a CPU that MKL was not made for: 16 with AVX-512, 8 with AVX2. 0 on Intel's and others."""
    path = Path("/proc/cpuinfo")
    if not path.is_file() or "GenuineIntel" in path.read_text():
        return 0
    return 16 if torch.cpu._is_avx512_supported() else 8 * int(torch.cpu._is_avx2_supported())


def has_unused_avx512() -> bool:
    """Whether this CPU has AVX-512 and is not Intel's."""
    return lanes() == 16


def product(x_RK: Tensor, weight_NK: Tensor) -> Tensor:
    """(R, N): x @ weight.T in fp32 on the CPU by oneDNN. Either may be a transposed view; `x_RK` is then copied."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x_RK, weight_NK, None, "none", [], "")
    return result


@torch.library.custom_op("argonne::multiply", mutates_args=())
def _multiply(x_RK: Tensor, weight_NK: Tensor) -> Tensor:
    return product(x_RK, weight_NK)


@_multiply.register_fake
def _(x_RK: Tensor, weight_NK: Tensor) -> Tensor:
    return x_RK.new_empty(x_RK.shape[0], weight_NK.shape[0])


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient_RN: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[no-untyped-def]
    x_RK, weight_NK = ctx.saved_tensors
    x_needed, weight_needed = ctx.needs_input_grad
    return (
        torch.ops.argonne.multiply(gradient_RN, weight_NK.t()) if x_needed else None,
        # The copy stands here so that a compiler sees it: torch alone makes it with one thread.
        torch.ops.argonne.multiply(gradient_RN.t().contiguous(), x_RK.t()) if weight_needed else None,
    )


_multiply.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.argonne.multiply)
def _flops(x_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * x_shape[0] * x_shape[1] * weight_shape[0]
