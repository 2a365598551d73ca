"""Memory is used again, but never while it is still referred to."""

import numpy as np
import pytest
import torch

from train.buffers import MOST, Widening


def ids(first, dtype=np.uint16):
    return torch.from_numpy(np.arange(first, first + 6).astype(dtype).reshape(2, 3))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_ids_are_the_same_as_int64(dtype):
    wide = Widening(torch.device("cpu"))(ids(60_000, dtype))
    assert wide.dtype == torch.int64
    assert wide.tolist() == [[60_000, 60_001, 60_002], [60_003, 60_004, 60_005]]


def test_memory_is_used_again_once_nothing_refers_to_it():
    widen = Widening(torch.device("cpu"))
    first = widen(ids(0))
    place = first.data_ptr()
    del first
    assert {widen(ids(number)).data_ptr() for number in range(10)} == {place}


@pytest.mark.parametrize(
    "kept", [lambda wide: wide, lambda wide: wide[:, 1:], lambda wide: wide.numpy()[0]], ids=["whole", "view", "numpy"]
)
def test_what_is_still_referred_to_does_not_change(kept):
    widen = Widening(torch.device("cpu"))
    held = [kept(widen(ids(10 * number))) for number in range(2 * MOST)]
    wanted = [kept(ids(10 * number).to(torch.int64)) for number in range(2 * MOST)]
    assert [one.tolist() for one in held] == [one.tolist() for one in wanted]


def test_a_backward_pass_keeps_the_ids_it_needs():
    widen = Widening(torch.device("cpu"))
    weight = torch.zeros(100, 1, requires_grad=True)
    out = torch.nn.functional.embedding(widen(ids(0)), weight).sum()
    for _ in range(2 * MOST):
        widen(ids(50))
    out.backward()
    assert weight.grad[:6].flatten().tolist() == [1.0] * 6
