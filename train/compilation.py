"""Regional compilation: one block is compiled, and its graph serves all blocks.

The function of a block is compiled, not the block: its parameters keep their names, and hooks around it (fully_shard's)
stay outside of the graph. Source: torchtitan, torchtitan/models/llama3/parallelize.py.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.memory_errors import is_out_of_memory

SHAPES = 64  # of microbatches, in training and in evaluation: each has a graph of its own


class Compilation:
    """The compiled blocks of one model. From the first failure on all run as they are; the reason is reported.

    A compiler that runs out of memory has not failed: with a smaller microbatch it may do.
    """

    def __init__(self, blocks: Iterable[nn.Module], donate_buffers: bool) -> None:
        self.failure: str | None = None
        self.report: Callable[[str], None] = print
        torch._dynamo.config.recompile_limit = SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # torch alone would go on uncompiled, and not say so
        torch._functorch.config.donated_buffer = donate_buffers
        torch._functorch.config.force_non_lazy_backward_lowering = True  # else the backward pass fails in the middle
        for block in blocks:
            setattr(block, "forward", self._guarded(block.forward))  # noqa: B010  a method of this block alone

    def _guarded(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._inductor.exc import InductorError

        compiled = torch.compile(function, dynamic=False)

        def call(*arguments: object) -> Tensor:
            if self.failure is None:
                try:
                    return compiled(*arguments)
                except (TorchDynamoException, FailOnRecompileLimitHit, InductorError) as error:
                    if is_out_of_memory(error):
                        raise
                    self.give_up(str(error).strip().splitlines()[0])
            return function(*arguments)

        return call

    def give_up(self, reason: str) -> None:
        """Run all blocks as they are from now on."""
        self.failure = reason
        self.report(reason)


def compiled_share(models: Sequence[Any]) -> float:
    """Share of the models whose blocks run compiled."""
    running = [model.compilation is not None and model.compilation.failure is None for model in models]
    return sum(running) / len(running)
