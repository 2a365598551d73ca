"""A pipeline stage that measures its own work, holds no buffer longer than it needs it, and drains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import stage as torch_stage

from shared.errors import ConfigError
from train.drain import Drain

Mark = float | torch.cuda.Event


def check_pipelining() -> None:
    """Raises: ConfigError if this torch is so old that its stages keep what they receive in another way."""
    if "is_root_arg" not in signature(torch_stage._RecvInfo).parameters:
        raise ConfigError(
            f"strategy pipeline needs a newer torch than {torch.__version__}, as 2.13: install it, or use fsdp"
        )


class Stopwatch:
    """Times work on a device without waiting for it: the seconds are asked for later."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self.spans: list[tuple[Mark, Mark]] = []

    def mark(self) -> Mark:
        """This moment in the device's order of work."""
        if not self.is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def run(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What `work` gives; its span is kept."""
        began = self.mark()
        result = work(*arguments, **named)
        self.spans.append((began, self.mark()))
        return result

    def seconds(self) -> float:
        """Of all spans, which are then forgotten; on a GPU they must have ended."""
        total = sum(_seconds(*span) for span in self.spans)
        self.spans.clear()
        return total


def _seconds(began: Any, ended: Any) -> float:
    if isinstance(began, torch.cuda.Event):
        return float(began.elapsed_time(ended)) / 1000
    return float(ended - began)


class Stage(PipelineStage):
    """`PipelineStage` whose forward and backward passes are timed by `stopwatch`.

    torch allocates what a stage receives for all microbatches of a step at once. Here a buffer is made when something
    is received and given up when it was used, so a step of many microbatches takes no more memory than one of few.

    Once memory has run out, it computes nothing and gives placeholders (see drain.py).
    """

    def __init__(self, stopwatch: Stopwatch, drain: Drain, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.stopwatch, self.drain = stopwatch, drain
        drain.stages.append(self)

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **named: Any) -> Any:
        """See PipelineStage; the received activations are then autograd's alone."""
        output = self._compute(super().forward_one_chunk, fwd_chunk_id, *arguments, **named)
        if self.drain.shortage is not None:
            output = self._placeholder()
            self.fwd_cache[fwd_chunk_id] = (output,), []
        self._free(self.args_recv_info[fwd_chunk_id])
        return output

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: torch.Tensor | None = None, *arguments: Any, **named: Any
    ) -> None:
        """See PipelineStage; the schedule keeps the losses of a step, and each would keep the input it came from."""
        self._compute(super().backward_one_chunk, bwd_chunk_id, loss, *arguments, **named)
        if loss is not None:
            loss.detach_()
        if self.has_backward:
            if self.drain.shortage is not None:
                self.fwd_cache.pop(bwd_chunk_id, None)
                self.bwd_cache[bwd_chunk_id] = (None,)  # for which torch sends zeros
            self._free(self.grad_recv_info[bwd_chunk_id])

    def backward_weight_one_chunk(self, *arguments: Any, **named: Any) -> None:
        """See PipelineStage."""
        self._compute(super().backward_weight_one_chunk, *arguments, **named)

    def drop(self) -> None:
        """See Holder. What was computed and not yet sent is kept, without the graph behind it."""
        for chunk, (outputs, _) in self.fwd_cache.items():
            self.fwd_cache[chunk] = tuple(output.detach() for output in outputs), []
            for output in outputs:
                if not output._is_view():
                    output.detach_()  # the schedule may hold it as well
        self.backward_state.clear()

    def perform_reduce_grad(self, *arguments: Any) -> None:
        """See PipelineStage; an evaluation has no gradients."""
        if self.has_backward:
            super().perform_reduce_grad(*arguments)

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[Any]:
        """See PipelineStage."""
        self._allocate(self.args_recv_info[fwd_chunk_id])
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[Any]:
        """See PipelineStage."""
        if self.has_backward:
            self._allocate(self.grad_recv_info[bwd_chunk_id])
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def _setup_forward_recv_info(self, *arguments: Any) -> None:
        with self._without_buffers():
            super()._setup_forward_recv_info(*arguments)

    def _setup_backward_recv_info(self, *arguments: Any) -> None:
        with self._without_buffers():
            super()._setup_backward_recv_info(*arguments)

    @contextmanager
    def _without_buffers(self) -> Iterator[None]:
        """What is allocated inside has a shape and no storage."""
        device, self.device = self.device, torch.device("meta")
        try:
            yield
        finally:
            self.device = device

    def _compute(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self.drain.compute(self.stopwatch.run, work, *arguments, **named)

    def _placeholder(self) -> torch.Tensor:
        """Of what a forward pass gives."""
        assert self._stage_meta.outputs is not None, "the schedule has told what it is"
        (given,) = self._stage_meta.outputs
        return torch.zeros(given.shape, dtype=given.dtype, device=self.device)

    def _allocate(self, infos: Any) -> None:
        for info in infos:
            if info.tensor_meta is not None and not info.is_root_arg:
                empty = partial(torch.empty, info.tensor_meta.shape, dtype=info.tensor_meta.dtype, device=self.device)
                buffer = self.drain.compute(empty)
                info.buffer = empty() if buffer is None else buffer

    def _free(self, infos: Any) -> None:
        for info in infos:
            info.buffer = None
