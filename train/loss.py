"""The loss of the last hidden states without the logits of all positions.

Rows go through the head a chunk at a time; a chunk's logits become its loss and then, in place, its gradient, and are
gone. No tensor of vocabulary x tokens exists, in training or in evaluation. Source of the idea: Hsu et al., Liger
Kernel, arXiv 2410.10989; Wijmans et al., Cut Your Losses, arXiv 2411.09009.

Legend: R rows (positions of all sequences), C hidden_size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from train.linear import has_unused_avx512, is_plain_fp32, lanes, product

IGNORED = -100
CHUNK_ROWS = {"cpu": 256, "cuda": 4096}
"""On a CPU, what a chunk costs beside its logits (one pass over the head's gradient) is small at 256 rows, and the
logits of 16,384 ids still fit its cache; a GPU takes longest for that pass: recipe `125m` trains 1.11 times
as fast on an H200 with 4,096 rows as with 1,024 (and only 1.03 times faster still with 16,384)."""


@dataclass(frozen=True)
class LossTerms:
    """What is done to the logits, and what is added to their loss."""

    softcap: float | None = None
    """The logits are softcap * tanh(logits / softcap). Source: Gemma 2, arXiv 2408.00118."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator. Source: Chowdhery et al., PaLM, arXiv 2204.02311."""


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """The logits, kept within +-softcap."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


def token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum of the cross entropies in fp32 over the targets that are not IGNORED."""
    return F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def fused_loss(
    hidden_BTC: Tensor, weight_VC: Tensor, targets_BT: Tensor, terms: LossTerms, each_BT: Tensor | None = None
) -> Tensor:
    """Sum over the targets that are not IGNORED of the cross entropy of hidden @ weight.T, in fp32.

    Its gradient is that of the cross entropy and the z-loss; its value is the cross entropy alone. Where it learns,
    `each_BT` (fp32) is filled with what each target adds to it.
    """
    is_learned = torch.is_grad_enabled() and (hidden_BTC.requires_grad or weight_VC.requires_grad)
    apply: Callable[..., Tensor] = _FusedLoss.apply
    each_R = None if each_BT is None else each_BT.view(-1)
    return apply(hidden_BTC.flatten(0, -2), weight_VC, targets_BT.flatten(), terms, is_learned, each_R)


class _FusedLoss(torch.autograd.Function):
    """The gradients are made in the forward pass, where the logits are; backward only scales them.

    So it may run more than once (a schedule that asks for input and weight gradients apart does that), and for any
    gradient of the loss.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RC: Tensor,
        weight_VC: Tensor,
        targets_R: Tensor,
        terms: LossTerms,
        is_learned: bool,
        each_R: Tensor | None,
    ) -> Tensor:
        device = hidden_RC.device.type
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else hidden_RC.dtype
        multiply = product if lanes() and is_plain_fp32(hidden_RC, weight_VC) else F.linear
        with torch.autocast(device, enabled=False):
            chunks = _Chunks(hidden_RC.to(dtype), weight_VC.to(dtype), targets_R, terms, multiply, each_R)
            loss = chunks.run(is_learned)
        if is_learned:
            gradients = chunks.hidden_gradient.to(hidden_RC.dtype), chunks.weight_gradient().to(weight_VC.dtype)
            ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        hidden_needed, weight_needed = ctx.needs_input_grad[:2]
        return (
            hidden_gradient * gradient.to(hidden_gradient.dtype) if hidden_needed else None,
            weight_gradient * gradient.to(weight_gradient.dtype) if weight_needed else None,
            None,
            None,
            None,
            None,
        )


class _Chunks:
    """The sums over chunks of rows."""

    def __init__(
        self,
        hidden_RC: Tensor,
        weight_VC: Tensor,
        targets_R: Tensor,
        terms: LossTerms,
        multiply: Any,
        each_R: Tensor | None,
    ) -> None:
        self.each_R = each_R
        self.hidden_RC, self.weight_VC, self.targets_R = hidden_RC, weight_VC, targets_R
        self.terms, self.multiply = terms, multiply
        self.hidden_gradient = torch.empty_like(hidden_RC)
        self._gradient_VC: Tensor | None = None
        self._can_add = weight_VC.dtype == torch.float32 and not has_unused_avx512()

    def run(self, is_learned: bool) -> Tensor:
        """The loss of all rows; the gradients as well, if asked for."""
        loss = torch.zeros((), dtype=torch.float32, device=self.hidden_RC.device)
        step = CHUNK_ROWS.get(self.hidden_RC.device.type, CHUNK_ROWS["cuda"])
        for start in range(0, len(self.hidden_RC), step):
            loss += self._chunk(slice(start, start + step), is_learned)
        return loss

    def weight_gradient(self) -> Tensor:
        """(V, C), in fp32."""
        return torch.zeros_like(self.weight_VC) if self._gradient_VC is None else self._gradient_VC.contiguous()

    def _chunk(self, rows: slice, is_learned: bool) -> Tensor:
        """The loss of some rows, whose logits are gone before the next ones are made."""
        logits = self.multiply(self.hidden_RC[rows], self.weight_VC).float()
        if not is_learned:
            return self._loss(logits, rows)
        losses_R1 = into_gradient(logits, self.targets_R[rows], self.terms)
        if self.each_R is not None:
            self.each_R[rows] = losses_R1[:, 0]
        self._learn(logits.to(self.weight_VC.dtype), rows)
        return losses_R1.sum()

    def _loss(self, logits_RV: Tensor, rows: slice) -> Tensor:
        capped = cap(logits_RV, self.terms.softcap)
        return F.cross_entropy(capped, self.targets_R[rows], ignore_index=IGNORED, reduction="sum")

    def _learn(self, gradient_RV: Tensor, rows: slice) -> None:
        is_real_R1 = (self.targets_R[rows] != IGNORED)[:, None]  # cheaper here than on the logits
        self.hidden_gradient[rows] = self.multiply(gradient_RV, self.weight_VC.t()) * is_real_R1
        hidden_RC = self.hidden_RC[rows] * is_real_R1
        if self._gradient_VC is not None and self._can_add:
            self._gradient_VC.addmm_(gradient_RV.t(), hidden_RC)
        elif self._can_add:
            self._gradient_VC = gradient_RV.t() @ hidden_RC
        else:  # oneDNN and low precision: a sum beside the product, transposed, so that no chunk's logits have to be
            more = self.multiply(hidden_RC.t().contiguous(), gradient_RV.t()).float().t()
            self._gradient_VC = more if self._gradient_VC is None else self._gradient_VC.add_(more)


def into_gradient(logits_RV: Tensor, targets_R: Tensor, terms: LossTerms) -> Tensor:
    """The cross entropy of each row; `logits_RV` (fp32) becomes the gradient of the loss with all its terms.

    In the rows of IGNORED targets it becomes anything finite.
    """
    slope = None
    if terms.softcap is not None:
        logits_RV.div_(terms.softcap).tanh_()
        slope = 1 - logits_RV.square()
        logits_RV.mul_(terms.softcap)
    is_real = (targets_R != IGNORED)[:, None]
    safe_R1 = targets_R[:, None].where(is_real, 0)
    target_logit_R1 = logits_RV.gather(1, safe_R1)
    highest_R1 = logits_RV.amax(-1, keepdim=True)
    torch.softmax(logits_RV, -1, out=logits_RV)
    log_sum_R1 = highest_R1 - logits_RV.amax(-1, keepdim=True).log()  # that probability is never close to zero
    if terms.z_loss:
        logits_RV.mul_(1 + 2 * terms.z_loss * log_sum_R1)
    logits_RV.scatter_add_(1, safe_R1, logits_RV.new_full(safe_R1.shape, -1.0))
    if slope is not None:
        logits_RV.mul_(slope)
    return (log_sum_R1 - target_logit_R1).where(is_real, 0.0)
