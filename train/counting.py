"""Counts what a step does, from its own operations: the bytes of its collectives, the bytes that autograd keeps."""

import weakref
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from train.strategy import local
from train.traffic import Traffic, gathered

FEW = 4


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes that this rank sends in collectives inside, if they go around a ring.

    Scalars are not counted, also where a few of them go together.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic: Traffic = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything pass."""
        name = func.name()
        if name == "c10d::_allgather_base_":
            self.traffic["gather"] += gathered(args[0].nbytes, _size(args[2]))
        elif name == "c10d::_reduce_scatter_base_":
            self.traffic["scatter"] += gathered(args[1].nbytes, _size(args[2]))
        elif name == "c10d::allreduce_":
            self.traffic["reduce"] += sum(2 * gathered(t.nbytes, _size(args[1])) for t in args[0] if t.numel() > FEW)
        elif name == "c10d::send":
            self.traffic["send"] += sum(tensor.nbytes for tensor in args[0])
        return func(*args, **(kwargs or {}))


def _size(group: Any) -> int:
    return dist.ProcessGroup.unbox(group).size()


class Kept:
    """Bytes of the tensors that autograd keeps for the backward passes inside, weights aside: now, and at the peak."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._holders: Counter[int] = Counter()
        self._hooks = saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> "Kept":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> "_Kept":
        return _Kept(self, tensor)

    def add(self, storage: torch.UntypedStorage) -> None:
        """One more holder of `storage`, which counts once."""
        self._holders[storage._cdata] += 1
        if self._holders[storage._cdata] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def drop(self, storage: torch.UntypedStorage) -> None:
        """One holder less."""
        self._holders[storage._cdata] -= 1
        if not self._holders[storage._cdata]:
            self.now -= storage.nbytes()


class _Kept:
    """A tensor in autograd's keeping: counted until autograd lets go of it."""

    def __init__(self, keeper: Kept, tensor: Tensor) -> None:
        self.tensor, self.keeper = tensor.detach(), keeper  # with its history it would keep what keeps it
        is_weight = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        self.storage = None if is_weight else tensor.untyped_storage()
        if self.storage is not None:
            keeper.add(self.storage)

    def __del__(self) -> None:
        if self.storage is not None:
            self.keeper.drop(self.storage)


class Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors made inside that are alive: now, and at the peak. What an operation takes inside is not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._resize = torch.UntypedStorage.resize_

    def __enter__(self) -> Any:
        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            resized = self._resize(storage, size)
            self._note(storage)
            return resized

        setattr(torch.UntypedStorage, "resize_", resize)  # noqa: B010  fully_shard gives weights back by it
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exception: Any) -> None:
        setattr(torch.UntypedStorage, "resize_", self._resize)  # noqa: B010
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything pass."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._note(local(tensor).untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key).atexit = False
        self.now += storage.nbytes() - self._sizes.get(key, 0)
        self._sizes[key] = storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
