"""Whole matrices on some ranks from rows that are spread over all of them, and back.

Every rank of a group holds a slice of the rows of every matrix. Matrix `i` is dealt to rank `i % size`: each rank gets
the missing rows of its matrices, works on them whole, and returns to each rank its rows of the results. A rank so works
on 1/size of the matrices, and sends and receives as many bytes as its slice has.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_group(matrices: Sequence[Tensor]) -> dist.ProcessGroup | None:
    """The ranks over which the rows of all these matrices are spread; None if this rank holds them whole."""
    spreads = {(m.device_mesh, m.placements) if isinstance(m, DTensor) else None for m in matrices}
    assert len(spreads) <= 1, f"matrices are spread alike, not as {spreads}"
    spread = next(iter(spreads), None)
    if spread is None:
        return None
    mesh, placements = spread
    axes = [axis for axis, placement in enumerate(placements) if not placement.is_replicate()]
    assert all(placements[axis].is_shard(0) for axis in axes), f"rows are spread, not {placements}"
    groups = [mesh.get_group(axis) for axis in axes if mesh.size(axis) > 1]
    assert len(groups) <= 1, f"rows are spread over one axis of a mesh, not {placements}"
    return groups[0] if groups else None


def rows_of(num_rows: int, num_ranks: int) -> list[int]:
    """How many rows of a matrix each rank holds: equally many, the last ones fewer or none (as DTensor shards them).

    >>> rows_of(5, 4)
    [2, 2, 1, 0]
    """
    most = -(-num_rows // num_ranks)
    return [min(most, max(num_rows - rank * most, 0)) for rank in range(num_ranks)]


class Deal:
    """Who works on which of the matrices of `shapes`. Every rank of `group` calls every method, in the same order."""

    def __init__(self, shapes: Sequence[torch.Size], group: dist.ProcessGroup) -> None:
        self.group, size = group, group.size()
        self.hands = [range(rank, len(shapes), size) for rank in range(size)]
        self.mine = self.hands[group.rank()]
        # slices[rank][i]: the shape of what `rank` holds of matrix i
        self.slices = [[torch.Size((rows_of(s[0], size)[rank], s[1])) for s in shapes] for rank in range(size)]

    def on_whole(self, slices: Sequence[Tensor], work: Callable[[list[Tensor]], list[Tensor]]) -> list[Tensor]:
        """This rank's slices of the results of `work`, which is given whole matrices and keeps their shapes."""
        wanted = [[shapes[i] for i in self.mine] for shapes in self.slices]
        received = self._exchange([[slices[i] for i in hand] for hand in self.hands], wanted, slices[0])
        results = work([torch.cat(parts) for parts in zip(*received, strict=True)])
        return self._return(results, slices[0])

    def _return(self, results: list[Tensor], like: Tensor) -> list[Tensor]:
        """This rank's slices of all results, from every rank's whole ones."""
        sent: list[list[Tensor]] = [[] for _ in self.hands]
        for i, result in zip(self.mine, results, strict=True):
            for tensors, part in zip(sent, torch.split(result, [shapes[i][0] for shapes in self.slices]), strict=True):
                tensors.append(part)
        shapes = self.slices[self.group.rank()]
        received = self._exchange(sent, [[shapes[i] for i in hand] for hand in self.hands], like)
        by_number = dict(zip(chain(*self.hands), chain(*received), strict=True))
        return [by_number[i] for i in range(len(shapes))]

    def _exchange(self, sent: list[list[Tensor]], wanted: list[list[torch.Size]], like: Tensor) -> list[list[Tensor]]:
        """Send `sent[rank]` to each rank; the tensors from each rank, which have the shapes `wanted[rank]`."""
        buffer = torch.cat([like.new_empty(0), *(tensor.flatten() for tensor in chain(*sent))])
        sizes = [[shape.numel() for shape in shapes] for shapes in wanted]
        received = buffer.new_empty(sum(map(sum, sizes)))
        out_sizes, in_sizes = [sum(s) for s in sizes], [sum(t.numel() for t in tensors) for tensors in sent]
        dist.all_to_all_single(received, buffer, out_sizes, in_sizes, group=self.group)
        pieces = iter(torch.split(received, list(chain(*sizes))))
        return [[next(pieces).view(shape) for shape in shapes] for shapes in wanted]
