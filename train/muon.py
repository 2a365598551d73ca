"""Muon: a matrix moves by its momentum with all singular values made about equal.

Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon (the
iteration and its coefficients); Liu et al., Muon is Scalable for LLM Training, arXiv 2502.16982 (weight decay, scale).
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from train.dealing import Deal, local, shard_group

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalize(matrices_KNM: Tensor) -> Tensor:
    """Each matrix with its singular values brought near 1 (0.7 to 1.2, but for very small ones); same dtype.

    An odd polynomial of a matrix acts on its singular values alone, and this one, iterated, lifts them from zero fast.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices_KNM.shape[1] > matrices_KNM.shape[2]
    x = matrices_KNM.mT if is_tall else matrices_KNM  # the smaller of the two products with itself
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def update_scale(shape: torch.Size) -> float:
    """What makes the elements of an orthogonal matrix as large as AdamW's updates are, about 0.2.

    So one learning rate and one weight decay serve both. Source: Liu et al., arXiv 2502.16982, section 2.2.
    """
    return 0.2 * math.sqrt(max(shape))


class MuonAndAdamW(Optimizer):
    """Muon for the groups with `muon` set, AdamW for the others. `adamw` are AdamW's own options.

    The two share their groups and their state, so to others this is one optimizer.
    """

    def __init__(self, groups: list[dict[str, Any]], rate: float, momentum: float, adamw: dict[str, Any]) -> None:
        super().__init__(groups, {"lr": rate, "weight_decay": 0.0})
        self.momentum = momentum
        self.adamw = AdamW([group for group in self.param_groups if not group["muon"]], lr=rate, **adamw)
        self.adamw.state = self.state
        matrices = [parameter for group in self.param_groups if group["muon"] for parameter in group["params"]]
        self.matrices = sorted(matrices, key=lambda matrix: tuple(matrix.shape))  # those alike go to all ranks alike
        group = shard_group(self.matrices)
        self.deal = Deal([matrix.shape for matrix in self.matrices], group) if group else None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter; every rank of the shards' group must call it."""
        assert closure is None, "gradients are there already"
        self.adamw.step()
        looks = [self._look_ahead(matrix) for matrix in self.matrices]
        updates = self.deal.on_whole(looks, _orthogonalize_each) if self.deal else _orthogonalize_each(looks)
        for group in self.param_groups:
            if group["muon"]:
                self._move(group, dict(zip(self.matrices, updates, strict=True)))

    def _look_ahead(self, matrix: Tensor) -> Tensor:
        """This rank's rows of the momentum after one step more of the same gradient (Nesterov's), as it is multiplied.

        bf16 where tensor cores make it cheap; a CPU multiplies bf16 ten times slower than fp32.
        """
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        assert matrix.grad is not None, "every matrix of a block is used in its forward pass"
        gradient, momentum = local(matrix.grad), local(state["momentum"])
        momentum.lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(momentum, self.momentum).to(torch.bfloat16 if matrix.is_cuda else torch.float32)

    def _move(self, group: dict[str, Any], updates: dict[Tensor, Tensor]) -> None:
        for matrix in group["params"]:
            weight = local(matrix)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(updates[matrix], alpha=-group["lr"] * update_scale(matrix.shape))


def _orthogonalize_each(matrices: list[Tensor]) -> list[Tensor]:
    """Those of one shape in one batch."""
    alike = defaultdict[torch.Size, list[int]](list)
    for number, matrix in enumerate(matrices):
        alike[matrix.shape].append(number)
    results = list(matrices)
    for numbers in alike.values():
        for number, result in zip(numbers, orthogonalize(torch.stack([matrices[n] for n in numbers])), strict=True):
            results[number] = result
    return results
