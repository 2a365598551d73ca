"""Pure: the bytes that a rank holds at once in a training step, at their most, by what they are for.

A step is gone through moment by moment (the loss, the last block's backward pass, the embedding's, the optimizer); the
dearest moment counts. These are bytes of tensors, what `torch.cuda.max_memory_allocated` tells: what a library takes
for itself, and what an allocator keeps of freed memory, is beside them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

from train.bubble import held_parts
from train.config import RunConfig
from train.layout import Layout
from train.linear import has_unused_avx512
from train.loss import CHUNK_ROWS
from train.memory import (
    FP32,
    activation_bytes,
    block_activation_bytes,
    cast_bytes,
    computed_split,
    head_activation_bytes,
    optimizer_bytes,
    recompute_of,
)
from train.traffic import block_shapes, end_shapes, padded

ACCURACY = 0.1
"""Of the sum; `python -m tests.benchmarks.planning` measures it."""
GIB = 1 << 30


@dataclass(frozen=True)
class Holding:
    """Bytes of one rank at one moment."""

    weights: int = 0
    gathered: int = 0
    """Of weights that other ranks own, and of what carries them here."""
    gradients: int = 0
    optimizer: int = 0
    """Its state, and what a step of it takes for a while."""
    activations: int = 0
    """That the backward passes wait for, and what the one that goes on takes for a while."""
    loss: int = 0
    """A chunk of logits, the gradient of the head and its copies."""
    batch: int = 0
    """Ids of the rank's share of the global batch."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Each by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def times(self, factor: float) -> "Holding":
        """That of so many ranks."""
        return Holding(**{name: int(size * factor) for name, size in self.parts().items()})

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GIB:.3g}" for name, size in self.parts().items() if size)
        return f"{self.total / GIB:.3g} GiB ({parts})"


def added_up(holdings: Iterable[Holding]) -> Holding:
    """What several ranks hold.

    >>> str(added_up([Holding(weights=GIB), Holding(weights=GIB, loss=GIB // 2)]))
    '2.5 GiB (weights 2, loss 0.5)'
    """
    each = [holding.parts() for holding in holdings]
    return Holding(**{name: sum(parts[name] for parts in each) for name in each[0]})


def dearest(config: RunConfig, layout: Layout, device: str = "cuda") -> tuple[int, Holding]:
    """The stage whose ranks hold the most, and what they hold then."""
    held = stage_peaks(config, layout, device)
    stage = max(range(len(held)), key=lambda number: held[number].total)
    return stage, held[stage]


def stage_peaks(config: RunConfig, layout: Layout, device: str = "cuda") -> list[Holding]:
    """The dearest moment of a rank of each stage, for layers split by multiplications."""
    parts = computed_split(config, layout)
    activations = activation_bytes(config, layout, parts)
    return [
        max(_Stage(config, layout, parts, stage, device, activations[stage]).moments(), key=lambda held: held.total)
        for stage in range(layout.num_stages)
    ]


class _Stage:
    """What one rank of a stage holds at each moment of a step."""

    def __init__(
        self, config: RunConfig, layout: Layout, parts: Sequence[range], stage: int, device: str, activations: int
    ) -> None:
        self.config, self.layout, self.device = config, layout, device
        self.stage, self.activations = stage, activations
        self.is_first, self.is_last = stage == 0, stage == layout.num_stages - 1
        self.layers = [number for part in parts[stage :: layout.num_stages] for number in part]
        self.is_pipeline = config.strategy == "pipeline"
        self.is_sharded = layout.shards > 1 or (not self.is_pipeline and layout.dp_size > 1)
        self.is_tied = config.model.tie_word_embeddings and self.is_first and self.is_last
        self.narrow = 4 if config.training.precision == "fp32" else 2
        blocks, ends = (
            block_shapes(config.model),
            end_shapes(config.model, is_first=self.is_first, is_last=self.is_last),
        )
        self.block, self.ends = padded(blocks, layout.shards), padded(ends, layout.shards)
        self.state = len(self.layers) * optimizer_bytes(config, blocks, layout.shards)
        self.state += optimizer_bytes(config, ends, layout.shards, of_blocks=False)
        self.tokens = config.microbatch * config.data.sequence_length
        self.hidden = FP32 * self.tokens * config.model.hidden_size
        self.table = FP32 * config.model.vocab * config.model.hidden_size
        self.held = (
            held_parts(config.pipeline.schedule, layout.num_stages, layout.parts, layout.microbatches, stage)
            if self.is_pipeline
            else 1
        )
        self.passes = layout.parts * layout.microbatches

    def moments(self) -> Iterator[Holding]:
        """All that can be the dearest."""
        owned = FP32 * self.elements // self.layout.shards
        state = Holding(weights=owned, optimizer=self.state, batch=16 * self.tokens * self.layout.microbatches)
        for held in (self._first_backward(), self._later_backward(), self._embedding()):
            yield from (replace(moment, weights=owned, optimizer=state.optimizer, batch=state.batch) for moment in held)
        yield replace(state, gradients=owned, optimizer=self.state + self._muon_takes())

    @property
    def elements(self) -> int:
        """Of the weights of this stage, over the ranks that share them."""
        return self.block * len(self.layers) + self.ends

    def _muon_takes(self) -> int:
        """For a step of Muon: every matrix ahead and moved, those of one shape in one batch as they are multiplied."""
        if self.config.optimizer.name != "muon":
            return 0
        shapes = Counter(shape for shape in block_shapes(self.config.model) if len(shape) > 1)
        alike = max(count * padded([shape], self.layout.shards) for shape, count in shapes.items())
        each = (2 + self.is_sharded) * padded(list(shapes.elements()), self.layout.shards) + 3 * alike
        width = 2 if self.device == "cuda" else FP32
        return width * each * len(self.layers) // self.layout.shards

    def _first_backward(self) -> Iterator[Holding]:
        """Of the first microbatch: all activations, no gradients yet."""
        yield from self._backward(self._held_activations(self.held), 0)

    def _later_backward(self) -> Iterator[Holding]:
        """Of a later one: fewer may be held at the end of a step, but there are gradients."""
        if self.layout.microbatches > 1:
            held = min(self.held, self.passes - 1)
            yield from self._backward(self._held_activations(held), FP32 * self.elements)

    def _held_activations(self, held: int) -> int:
        """Of so many microbatches, with the outputs that wait for their gradients."""
        casts = sum(cast_bytes(self.config, self.layout, recompute_of(self.config, number)) for number in self.layers)
        kept = (self.activations - self._head_kept() - casts) * held // self.held + casts
        outputs = held * self.hidden if self.is_pipeline and not (self.is_last and self.layout.parts == 1) else 0
        return kept + outputs + self._waiting_for_weights()

    def _waiting_for_weights(self) -> int:
        """Gradients of what products gave, by which zero-bubble makes those of the weights later."""
        if not self.is_pipeline or self.config.pipeline.schedule != "zero-bubble":
            return 0
        model = self.config.model
        each = 2 * model.hidden_size + model.query_width + 2 * model.kv_heads * model.head_dim + 2 * model.feed_forward
        return self.stage * len(self.layers) // self.layout.parts * self.narrow * self.tokens * each

    def _head_kept(self) -> int:
        if not self.is_last:
            return 0
        heads = 2 if self.is_pipeline and self.config.pipeline.schedule == "zero-bubble" else 1
        return heads * head_activation_bytes(self.config)

    def _backward(self, activations: int, gradients: int) -> Iterator[Holding]:
        """The moments of a backward pass that begins with so many bytes."""
        if self.is_last:
            head = self._head_kept() - self.table
            base = Holding(gathered=self._gathered(0), gradients=gradients, activations=activations + head)
            yield replace(base, loss=self._logits())
            yield replace(base, loss=2 * self.table + self.hidden)  # the gradient is scaled into a copy
        waiting = self.table * (self.is_last and (self.is_tied or not gradients))
        yield Holding(
            gathered=self._gathered(2),
            gradients=gradients + waiting,
            activations=activations + self._block_takes() + self.hidden,
        )

    def _block_takes(self) -> int:
        """For the backward pass of the block that is dearest there, beside what it keeps; what it computes again."""
        model = self.config.model
        takes = self.narrow * model.feed_forward * (2 * self.tokens + model.hidden_size)
        kept = block_activation_bytes(self.config, "none")
        dearest = 0
        for number in self.layers:
            recompute = recompute_of(self.config, number)
            again = kept - block_activation_bytes(self.config, recompute)
            casts = 2 * self.block if recompute != "none" and self.narrow == 2 and not self.is_sharded else 0
            dearest = max(dearest, again + casts)
        return takes + dearest

    def _gathered(self, blocks: int) -> int:
        """Weights gathered from other ranks, of so many blocks where they are given back."""
        if not self.is_sharded:
            return 0
        if self.is_pipeline or not self.config.fsdp.reshard_after_forward:
            return self.narrow * self.block * len(self.layers) + FP32 * self.ends
        return self.narrow * self.block * max(blocks, 1) + FP32 * self.ends

    def _logits(self) -> int:
        """The last chunk of the loss: its logits, the head's gradient and what is added to it."""
        vocabulary = self.config.model.vocab
        rows = min(self.tokens, CHUNK_ROWS[self.device])
        is_one = self.tokens <= rows
        if self.narrow == 2:  # the head's weight in bf16, a chunk's gradient in bf16 and then in fp32
            return 6 * rows * vocabulary + self.table * (8 if is_one else 12) // 4
        if not has_unused_avx512():
            return 4 * rows * vocabulary + self.table
        return max(4 * rows * vocabulary + self.table * (1 if is_one else 2), 2 * self.table)

    def _embedding(self) -> Iterator[Holding]:
        """The end of a backward pass: all gradients, and that of the embedding as it comes."""
        gradients = FP32 * self.elements
        coming = self.table * (1 + self.is_tied) if self.is_first else 0
        for held, extra in ((self.held, 0), (min(self.held, self.passes - 1), coming)):
            under_way = self._held_activations(held - 1) if self.is_pipeline else 0
            whole = gradients if not self.is_sharded or self.layout.microbatches > 1 else 0
            yield Holding(gathered=self._gathered(1), gradients=whole + extra, activations=under_way)
        if self.is_sharded:
            shares = gradients // self.layout.shards
            yield Holding(gradients=shares + 2 * FP32 * self.ends)
            yield Holding(gradients=shares + FP32 * self.ends + coming, gathered=self._gathered(1))
