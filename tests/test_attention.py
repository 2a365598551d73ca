"""Attention in pieces and by the kernel, within windows and documents, against plain softmax over a mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train_helpers import architecture, lively_model, recipe, some_ids
from train import flash
from train.attention import block_mask
from train.building import build_model
from train.loss import token_loss
from train.pieces import QUERIES, attend_in_pieces, pieces

LENGTH = 300  # more than two pieces of a window's queries
STARTS = {
    "one": [[0]],
    "two rows alike": [[0, 100], [0, 100]],
    "two rows": [[0, 1, 2, 200], [0, 150]],
    "singles": [list(range(LENGTH))],
}
WINDOWS = [None, 1, 7, 130, 1000]


def starts_of(rows, length=LENGTH):
    """starts_BT of documents that begin at these positions."""
    marks = torch.zeros(len(rows), length, dtype=torch.int32)
    for row, firsts in zip(marks, rows, strict=True):
        row[firsts] = torch.tensor(firsts, dtype=torch.int32)
    return marks.cummax(1).values


def seen(starts_BT, window):
    """Bool (B, T, T), position by position."""
    place = torch.arange(starts_BT.shape[1])
    distance = place[:, None] - place
    return (distance >= 0) & (distance < (window or 10**9)) & (place >= starts_BT[:, :, None])


def masked(q, k, v, starts_BT, window):
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen(starts_BT, window)[:, None], -torch.inf).softmax(-1) @ v


def heads(rows, number, length=LENGTH):
    generator = torch.Generator().manual_seed(number)
    drawn = torch.empty(rows, length, number, 16).normal_(generator=generator).transpose(1, 2)
    return drawn.detach().requires_grad_()


def with_gradients(function, rows, kv_heads, *arguments):
    q, k, v = heads(rows, 4), heads(rows, kv_heads), heads(rows, kv_heads)
    out = function(q, k, v, *arguments)
    (out * torch.arange(out.numel()).reshape(out.shape).remainder(7)).sum().backward()
    return out.detach(), q.grad, k.grad, v.grad


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rows", STARTS.values(), ids=STARTS)
def test_pieces_give_the_values_and_gradients_of_a_masked_softmax(rows, window, kv_heads):
    starts_BT = starts_of(rows)
    ours, plain = (with_gradients(side, len(rows), kv_heads, starts_BT, window) for side in (attend_in_pieces, masked))
    for one, two in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5 * max(1.0, two.abs().max().item()), rtol=1e-5)


needs_kernel = pytest.mark.skipif(not flash.is_available(16), reason="needs AVX2 on a CPU that is not Intel's")


@needs_kernel
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("rows", STARTS.values(), ids=STARTS)
def test_the_kernel_gives_the_values_and_gradients_of_a_masked_softmax(rows, window, kv_heads):
    starts_BT = starts_of(rows)
    ours = with_gradients(flash.attend, len(rows), kv_heads, starts_BT, window)
    theirs = with_gradients(masked, len(rows), kv_heads, starts_BT, window)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@needs_kernel
@pytest.mark.parametrize("size", [16, 48, 64, 128])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 200])
def test_the_kernel_takes_any_length_and_layout(length, size):
    drawn = [torch.randn(2, 3, length, size, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    gradient = drawn.pop()
    found = []
    for function in (flash.attend, masked):
        q, k, v = (x.clone().requires_grad_() for x in drawn)
        mixed = q, k.mT.contiguous().mT, v.transpose(1, 2).contiguous().transpose(1, 2)
        starts = None if function is flash.attend else torch.zeros(2, length, dtype=torch.int32)
        out = function(*mixed, starts, None)
        found.append((out, *torch.autograd.grad(out, (q, k, v), gradient)))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@needs_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_kernel_hides_no_number_that_is_not_finite(bad):
    for number, row in ((0, 3), (1, 69), (2, 69)):  # a query spoils its own row, a key or value those after it
        tensors = [torch.ones(1, 1, 70, 16) for _ in range(3)]
        tensors[number][0, 0, 3, 5] = bad
        for starts_BT in (None, torch.zeros(1, 70, dtype=torch.int32)):
            assert not flash.attend(*tensors, starts_BT, None)[0, 0, row].isfinite().all()


@needs_kernel
def test_without_a_compiler_there_is_no_kernel():
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert not flash.is_available(16)
    assert flash.is_available(16)


@needs_kernel
@pytest.mark.parametrize(
    ("compiled", "changes", "used"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"model__hidden_size": 32, "model__num_attention_heads": 4}, False),  # heads of 8
        (True, {"model__use_flash_attention": False}, False),
    ],
)
def test_a_compiled_model_uses_the_kernel_where_it_fits(compiled, changes, used):
    sizes = {"model__hidden_size": 32, "model__num_attention_heads": 2, "model__num_key_value_heads": 2}
    config = recipe(training__compile=compiled, **(sizes | changes))
    assert {block.attn.has_kernel for block in build_model(config).blocks.values()} == {used}


@pytest.mark.parametrize("window", [None, 7])
def test_flex_attention_sees_what_the_pieces_see(window):
    """Forward alone: flex_attention trains on a GPU only."""
    starts_BT = starts_of(STARTS["two rows"])
    q, k, v = (heads(2, number).detach() for number in (4, 2, 2))
    found = flex_attention(q, k, v, block_mask=block_mask(starts_BT, window), enable_gqa=True)
    torch.testing.assert_close(found, masked(q, k, v, starts_BT, window), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_pieces_cover_every_query_once_and_all_its_keys(data):
    length = data.draw(st.integers(1, 400))
    window = data.draw(st.none() | st.integers(1, 500))
    rows = [
        [0, *sorted(data.draw(st.sets(st.integers(1, max(length - 1, 1)), max_size=5)) - {length})]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    wanted, times = seen(starts_of(rows, length), window), torch.zeros(len(rows), length)
    for piece in pieces(rows, length, window):
        times[piece.rows, piece.queries] += 1
        wanted[piece.rows, piece.queries, piece.keys] = False
    assert (times == 1).all()
    assert not wanted.any()


def test_pieces_of_a_window_are_bounded():
    found = list(pieces([[0]], 10_000, 64))
    assert max(piece.keys.stop - piece.keys.start for piece in found) == QUERIES + 63


class Shapes(TorchDispatchMode):
    """Whether something of positions x positions was made inside."""

    length = 0
    was_made = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape[-2:]) == (self.length, self.length):
                self.was_made = True
        return result


@pytest.mark.parametrize(
    ("changes", "documents", "expected"),
    [
        ({}, False, False),
        ({}, True, False),
        ({"sliding_window": 30}, False, False),
        ({"sliding_window": 30}, True, False),
        ({"use_flash_attention": False}, False, True),
    ],
    ids=str,
)
def test_scores_of_all_positions_are_not_made(changes, documents, expected):
    model = lively_model(architecture(max_position_embeddings=LENGTH, **changes)).train()
    ids = some_ids(1, LENGTH)
    with Shapes() as made:
        made.length = LENGTH
        model(ids, ids, starts_of([[0, 90]]) if documents else None).backward()
    assert made.was_made == expected


# in a model

HALVES = starts_of([[0, 6]], 12)


def logits(ids, starts_BT=None, mask=True, restart=False, **changes):
    model = lively_model(architecture(**changes))
    model.document_mask, model.restart_positions = mask, restart
    return model(ids, starts_BT=starts_BT)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("changes", [{}, {"use_flash_attention": False}, {"sliding_window": 4}], ids=str)
def test_a_document_is_as_if_it_stood_alone(changes, restart):
    """Rotary attention knows distances alone, so where positions count from does not matter within a document."""
    ids = some_ids(1)
    together = logits(ids, HALVES, restart=restart, **changes)
    alone = torch.cat((logits(ids[:, :6], **changes), logits(ids[:, 6:], **changes)), dim=1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert (together - logits(ids, **changes))[:, 6:].abs().max() > 1e-2


def test_positions_that_restart_change_what_documents_see_of_each_other():
    ids = some_ids(1)
    plain, restarted, both = logits(ids), logits(ids, HALVES, False, True), logits(ids, HALVES, False, False)
    assert torch.equal(plain, both)
    torch.testing.assert_close(plain[:, :6], restarted[:, :6])
    assert (plain - restarted)[:, 6:].abs().max() > 1e-2


def test_a_mask_and_restarts_are_as_the_recipe_says():
    for mask, restart in ((True, False), (False, True)):
        model = build_model(recipe(data__document_mask=mask, data__restart_positions=restart))
        assert (model.document_mask, model.restart_positions) == (mask, restart)


def test_a_document_learns_nothing_from_another():
    model = lively_model(architecture()).train()
    ids, targets = some_ids(1), some_ids(1, seed=1)
    targets[:, 6:] = -100
    token_loss(model(ids, starts_BT=HALVES), targets).backward()
    touched = model.embed_tokens.weight.grad.abs().sum(1) > 0
    model.zero_grad()
    token_loss(model(ids[:, :6]), targets[:, :6]).backward()
    assert torch.equal(touched, model.embed_tokens.weight.grad.abs().sum(1) > 0)
