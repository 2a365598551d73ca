"""Activation checkpointing: what a block keeps of its forward pass for the backward one, and what it computes again."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import train.flash  # registers its operation
import train.pieces  # noqa: F401  the same
from train.config import Recompute

KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
    torch.ops.argonne.multiply.default,
    torch.ops.argonne.attend.default,
    torch.ops.argonne.flash.default,
]
"""What `selective` keeps: results of matrix products and attention, which are dear; all else is computed again.

Source: Korthikanti et al., Reducing Activation Recomputation, arXiv 2205.05198.
"""


def recomputed(mode: Recompute, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`function(*arguments)`, with as much kept for its backward pass as `mode` says."""
    if mode == "none":
        return function(*arguments)
    options: dict[str, Any] = {}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, **options)
    return result


def is_recomputed(number: int, stride: int) -> bool:
    """Whether the block of that number is one of every `stride`.

    >>> [number for number in range(6) if is_recomputed(number, 3)]
    [0, 3]
    """
    return number % stride == 0
