"""The loss without logits against the loss of all logits."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

import train.loss
from tests.train_helpers import architecture, lively_model, some_ids
from train.loss import IGNORED, LossTerms, cap, fused_loss

SHAPES = [(2, 256), (1, 300), (3, 7), (1, 1)]  # rows: two chunks, one and a rest, less than one
TERMS = [LossTerms(), LossTerms(z_loss=1e-2), LossTerms(softcap=3.0), LossTerms(softcap=3.0, z_loss=1e-2)]


def operands(rows, width=24, vocab=97, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(*rows, width).normal_(generator=generator)
    weight = torch.empty(vocab, width).normal_(generator=generator)
    targets = torch.randint(0, vocab, rows, generator=generator)
    targets[:, ::5] = IGNORED
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden, weight, targets, terms):
    """The cross entropy, and what is learned: that and the z-loss."""
    logits = cap((hidden @ weight.T).flatten(0, 1), terms.softcap)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    real = logits[targets.flatten() != IGNORED]
    return loss, loss + terms.z_loss * real.logsumexp(-1).square().sum()


def gradients(function, hidden, weight, targets, terms, scale=1.0):
    hidden.grad = weight.grad = None
    loss, learned = function(hidden, weight, targets, terms)
    (learned * scale).backward()
    return loss.detach(), hidden.grad, weight.grad


def fused(hidden, weight, targets, terms):
    loss = fused_loss(hidden, weight, targets, terms)
    return loss, loss


@pytest.mark.parametrize("scale", [1.0, -0.25])
@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("rows", SHAPES, ids=str)
def test_value_and_gradients_are_those_of_the_plain_cross_entropy(rows, terms, scale):
    ours, theirs = (gradients(side, *operands(rows), terms, scale) for side in (fused, plain))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * max(two.abs().max().item(), 1e-3), rtol=1e-5)


@pytest.mark.parametrize("has_avx512", [True, False])
def test_chunks_add_up_on_either_kind_of_cpu(has_avx512, monkeypatch):
    monkeypatch.setattr(train.loss, "has_unused_avx512", lambda: has_avx512)
    ours, theirs = (gradients(side, *operands((1, 900)), LossTerms()) for side in (fused, plain))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * two.abs().max().item(), rtol=1e-5)


def test_the_z_loss_is_learned_and_not_reported():
    (loss, *learned), (same, *without) = (
        gradients(fused, *operands((2, 9)), LossTerms(z_loss=weight)) for weight in (0.5, 0.0)
    )
    assert torch.equal(loss, same)
    assert all((one - two).abs().max() > 0.1 for one, two in zip(learned, without, strict=True))


def test_ignored_targets_alone_have_no_loss_and_no_gradient():
    hidden, weight, targets = operands((2, 9))
    found = gradients(fused, hidden, weight, torch.full_like(targets, IGNORED), LossTerms(z_loss=1.0))
    assert [tensor.abs().max().item() for tensor in found] == [0, 0, 0]


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_are_no_infinities(size):
    hidden, weight, targets = operands((1, 9))
    for value in gradients(fused, (hidden * size).detach().requires_grad_(), weight, targets, LossTerms()):
        assert value.isfinite().all()


def test_under_bf16_autocast_it_is_no_further_from_the_truth_than_the_plain_loss():
    exact = gradients(plain, *operands((2, 256), dtype=torch.float64), LossTerms())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (gradients(side, *operands((2, 256)), LossTerms()) for side in (fused, plain))
    for one, two, truth in zip(ours, theirs, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - truth).norm() <= 1.05 * (two - truth).norm()


@pytest.mark.parametrize("needed", [(True, False), (False, True)])
def test_a_gradient_is_given_to_those_who_need_it(needed):
    hidden, weight, targets = operands((2, 9))
    hidden.requires_grad_(needed[0])
    weight.requires_grad_(needed[1])
    fused_loss(hidden, weight, targets, LossTerms()).backward()
    assert (hidden.grad is not None, weight.grad is not None) == needed


def test_the_backward_pass_may_be_taken_twice_for_parts_of_the_gradient():
    """As zero-bubble pipeline schedules do: the input's gradient first, the weight's later."""
    hidden, weight, targets = operands((2, 9))
    loss = fused_loss(hidden, weight, targets, LossTerms())
    (first,) = torch.autograd.grad(loss, hidden, torch.tensor(2.0), retain_graph=True)
    (second,) = torch.autograd.grad(loss, weight, torch.tensor(2.0))
    _, *whole = gradients(fused, hidden, weight, targets, LossTerms(), 2.0)
    assert torch.equal(first, whole[0])
    assert torch.equal(second, whole[1])


class Largest(TorchDispatchMode):
    """Elements of the largest tensor made inside."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("is_learned", [True, False])
def test_no_tensor_of_vocabulary_times_tokens_is_made(is_learned):
    hidden, weight, targets = operands((4, 512), width=8, vocab=500)
    with Largest() as made, torch.set_grad_enabled(is_learned):
        fused_loss(hidden, weight, targets, LossTerms())
    assert made.elements == train.loss.CHUNK_ROWS["cpu"] * 500


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_learns_the_same_from_either_loss(tied):
    model = lively_model(architecture(tie_word_embeddings=tied)).train()
    ids, targets = some_ids(), some_ids(seed=1)
    found = []
    for loss in (
        lambda: model(ids, targets),
        lambda: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum"),
    ):
        model.zero_grad()
        loss().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-5)


def test_evaluation_is_pure_next_token_loss():
    model = lively_model(architecture(logit_softcap=5.0))
    model.z_loss = 10.0
    ids, targets = some_ids(), some_ids(seed=1)
    with torch.no_grad():
        loss = model(ids, targets)
        torch.testing.assert_close(
            loss, F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), reduction="sum"), rtol=1e-5, atol=0
        )
