"""Attention within documents and windows on a CPU: fused attention over pieces of the sequences, nothing else computed.

A mask over all positions would cost as much as attention without it; pieces skip what is masked. Documents differ from
batch to batch, so to a compiler this is one operation whose inside it does not see.

Legend: B sequences, T positions, H heads (fewer for keys and values), D head_dim.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

QUERIES = 128  # at once, where a window is smaller

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


@dataclass(frozen=True)
class Piece:
    """Queries of some sequences, and the keys that any of them may look at."""

    rows: slice
    queries: slice
    keys: slice


def pieces(starts: list[list[int]], length: int, window: int | None) -> Iterator[Piece]:
    """Pieces of sequences of `length`, given the first positions of their documents, that cover every query once.

    Sequences cut at the same places are taken together.

    >>> [(piece.rows.stop, piece.queries, piece.keys.start) for piece in pieces([[0, 3], [0, 3]], 5, None)]
    [(2, slice(0, 3, None), 0), (2, slice(3, 5, None), 3)]
    """
    groups = [(slice(0, len(starts)), starts[0])] if all(row == starts[0] for row in starts) else None
    for rows, firsts in groups or [(slice(number, number + 1), row) for number, row in enumerate(starts)]:
        for first, end in zip(firsts, [*firsts[1:], length], strict=True):
            step = end - first if window is None or window >= end - first else max(window, QUERIES)
            for query in range(first, end, step):
                last = min(query + step, end)
                key = first if window is None else max(first, query - window + 1)
                yield Piece(rows, slice(query, last), slice(key, last))


def attend_in_pieces(q: Tensor, k: Tensor, v: Tensor, starts_BT: Tensor, window: int | None) -> Tensor:
    """(B, H, T, D): causal attention of each position to those from its document's start, `window` of them at most."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    gathered: Tensor = torch.ops.argonne.attend(q, k, v, starts_BT, window)[0]
    return gathered


def _pieces_of(starts_BT: Tensor, window: int | None) -> list[Piece]:
    places = torch.arange(starts_BT.shape[1])
    starts = [places[row == places].tolist() for row in starts_BT]
    return list(pieces(starts, starts_BT.shape[1], window))


def _bias(piece: Piece, window: int | None, like: Tensor) -> Tensor | None:
    """What is added to the scores of a piece; None if being causal is all there is to it."""
    num_queries, num_keys = piece.queries.stop - piece.queries.start, piece.keys.stop - piece.keys.start
    if num_queries == num_keys and (window is None or window >= num_keys):
        return None
    distance = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)[None, :]
    is_seen = (distance >= 0) & (distance < (num_keys if window is None else window))
    return torch.zeros(num_queries, num_keys, dtype=like.dtype).masked_fill_(~is_seen, -torch.inf)


@torch.library.custom_op("argonne::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, starts_BT: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    out, log_sums_BHT = _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    for piece in _pieces_of(starts_BT, window):
        bias = _bias(piece, window, q)
        queries, keys = (piece.rows, slice(None), piece.queries), (piece.rows, slice(None), piece.keys)
        out[queries], log_sums_BHT[queries] = _forward(
            q[queries], k[keys], v[keys], is_causal=bias is None, attn_mask=bias
        )
    return out, log_sums_BHT


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts_BT: Tensor, window: int | None) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("argonne::attend_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_BT: Tensor,
    out: Tensor,
    log_sums_BHT: Tensor,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _empty(q), _empty(k).zero_(), _empty(v).zero_()
    for piece in _pieces_of(starts_BT, window):
        bias = _bias(piece, window, q)
        queries, keys = (piece.rows, slice(None), piece.queries), (piece.rows, slice(None), piece.keys)
        saved = q[queries], k[keys], v[keys], out[queries], log_sums_BHT[queries]
        found = _backward(gradient[queries], *saved, 0.0, bias is None, attn_mask=bias)
        gradients[0][queries] = found[0]
        gradients[1][keys] += found[1]
        gradients[2][keys] += found[2]
    return gradients


@_attend_backward.register_fake
def _(gradient, q, k, v, starts_BT, out, log_sums_BHT, window):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return _empty(q), _empty(k), _empty(v)


def _empty(x_BHTD: Tensor) -> Tensor:
    """Room for heads that lie beside each other at each position, as the projections around attention have them."""
    return torch.empty_like(x_BHTD.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, gradient: Tensor, _log_sums: Tensor):  # type: ignore[no-untyped-def]
    return (*torch.ops.argonne.attend_backward(gradient, *ctx.saved_tensors, ctx.window), None, None)


_attend.register_autograd(_differentiate, setup_context=_keep)
