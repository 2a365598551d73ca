"""Pure: the bytes that a rank holds of weights, gradients and optimizer state, that autograd keeps, that are saved."""

from collections.abc import Sequence

from train.bubble import held_parts
from train.config import Recompute, RunConfig
from train.layout import Layout, block_parameters
from train.recompute import is_recomputed
from train.split import computed_costs, split_layers
from train.traffic import Shape, block_shapes, end_shapes, padded

FP32 = 4
BYTES_PER_PARAMETER = 4 * FP32  # weight, gradient and two moments of AdamW


def state_bytes(config: RunConfig, layout: Layout, parts: Sequence[range], stage: int) -> int:
    """Bytes of weights, gradients and optimizer state on the first rank of a stage, for layers split into `parts`."""
    shapes = []
    for number in range(stage, layout.num_parts, layout.num_stages):
        shapes += block_shapes(config.model) * len(parts[number])
        shapes += end_shapes(config.model, is_first=number == 0, is_last=number == layout.num_parts - 1)
    return padded(shapes, layout.shards) // layout.shards * BYTES_PER_PARAMETER


def activation_bytes(config: RunConfig, layout: Layout, parts: Sequence[range]) -> list[int]:
    """Bytes that autograd keeps on a rank of each stage at its peak, for layers split into `parts`.

    Without a pipeline that is one microbatch; a stage of a pipeline holds as many as its schedule has under way.
    """
    sizes = []
    for stage in range(layout.num_stages):
        held = 1
        if config.strategy == "pipeline":
            held = held_parts(config.pipeline.schedule, layout.num_stages, layout.parts, layout.microbatches, stage)
        layers = [number for part in parts[stage :: layout.num_stages] for number in part]
        blocks = sum(block_activation_bytes(config, recompute_of(config, number)) for number in layers)
        casts = sum(cast_bytes(config, layout, recompute_of(config, number)) for number in layers)
        ends = (stage == 0) * embedding_activation_bytes(config) + layout.parts * rotary_bytes(config)
        sizes.append(held * (blocks + ends) // layout.parts + casts)
    # The backward pass of the last part follows its forward pass at once; zero-bubble puts off the weights' half of it.
    heads = 2 if config.strategy == "pipeline" and config.pipeline.schedule == "zero-bubble" else 1
    sizes[-1] += heads * head_activation_bytes(config)
    return sizes


def saved_bytes(config: RunConfig) -> int:
    """Of a checkpoint, and of the copy in host memory that it is written from: weights and optimizer state."""
    ends = end_shapes(config.model, is_first=True, is_last=True)
    blocks = config.model.num_hidden_layers * block_shapes(config.model)
    state = optimizer_bytes(config, blocks, 1) + optimizer_bytes(config, ends, 1, of_blocks=False)
    return FP32 * padded([*ends, *blocks], 1) + state


def most_kept(config: RunConfig) -> int:
    """Checkpoints that are on the disk at once: those that are kept, and the one that is being written."""
    return config.checkpoint.keep + 1


def optimizer_bytes(config: RunConfig, shapes: Sequence[Shape], shards: int, *, of_blocks: bool = True) -> int:
    """Of the optimizer's state on a rank: two moments, of the matrices of blocks one with Muon."""
    is_muon = config.optimizer.name == "muon" and of_blocks
    single = padded([shape for shape in shapes if len(shape) > 1], shards) if is_muon else 0
    return FP32 * (2 * padded(shapes, shards) - single) // shards


def computed_split(config: RunConfig, layout: Layout) -> list[range]:
    """The layers of each part, balanced by multiplications."""
    costs = computed_costs(config.model, config.data.sequence_length)
    return split_layers(config.model.num_hidden_layers, layout, costs)


def most_layers(config: RunConfig, layout: Layout, memory_bytes: int) -> list[int]:
    """Layers that fit on a rank of each stage of a pipeline, beside the embedding and the head."""
    counts = []
    for stage in range(layout.num_stages):
        is_first, is_last = stage == 0, stage == layout.num_stages - 1
        held = held_parts(config.pipeline.schedule, layout.num_stages, layout.parts, layout.microbatches, stage)
        ends = padded(end_shapes(config.model, is_first=is_first, is_last=is_last), layout.shards)
        block = padded(block_shapes(config.model), layout.shards)
        left = memory_bytes - ends // layout.shards * BYTES_PER_PARAMETER - is_last * head_activation_bytes(config)
        kept = max(block_activation_bytes(config, recompute_of(config, number)) for number in range(2))
        each = block // layout.shards * BYTES_PER_PARAMETER + held * kept // layout.parts
        counts.append(max(left // each, 0))
    return counts


def recompute_of(config: RunConfig, number: int) -> Recompute:
    """What the block of that number computes again in its backward pass."""
    training = config.training
    return training.activation_checkpointing if is_recomputed(number, training.checkpoint_stride) else "none"


def block_activation_bytes(config: RunConfig, recompute: Recompute) -> int:
    """Bytes that autograd keeps of a block's forward pass of one microbatch, computed eagerly by fused attention."""
    model = config.model
    width, kv_width = model.hidden_size, model.kv_heads * model.head_dim
    narrow = 4 if config.training.precision == "fp32" else 2  # bytes of what matrix products read
    normed = 2 * 4 * width + 4 + narrow * width  # a norm's input, scaled input and scale in fp32; its output
    if narrow == 2:
        normed, copies = normed - narrow * width, 5 * narrow * width  # each matrix product casts its input for itself
    else:
        copies = 0
    attention = (
        copies + narrow * (2 * model.query_width + 2 * kv_width) + 4 * model.num_attention_heads
    )  # q, k, v, gathered; log-sums
    if not model.use_flash_attention:
        attention += 4 * model.num_attention_heads * config.data.sequence_length
    products = 2 * narrow * (width + model.query_width + kv_width + model.feed_forward) + 4 * model.num_attention_heads
    each = {
        "none": 2 * normed + attention + narrow * 4 * model.feed_forward,
        "selective": 4 * width + products,  # the block's input; what each product and attention gave, and log-sums
        "full": 4 * width,
    }
    return _tokens(config) * each[recompute]


def embedding_activation_bytes(config: RunConfig) -> int:
    """The ids."""
    return _tokens(config) * 8


def cast_bytes(config: RunConfig, layout: Layout, recompute: Recompute) -> int:
    """Of a block's weights in bf16, where they are cast and not gathered in it, until the end of the step."""
    is_gathered = config.strategy == "fsdp" or layout.shards > 1
    is_cast = config.training.precision != "fp32" and recompute != "full" and not is_gathered
    return 2 * block_parameters(config.model) if is_cast else 0


def rotary_bytes(config: RunConfig) -> int:
    """Of the cosines and sines that the blocks of a part share."""
    return 2 * 4 * config.data.sequence_length * config.model.head_dim


def head_activation_bytes(config: RunConfig) -> int:
    """Of the last norm and the loss: what the norm keeps, the gradients of hidden states and of the head's weight."""
    each = 2 * 4 * config.model.hidden_size + 4 + 4 * config.model.hidden_size
    return _tokens(config) * each + 4 * config.model.vocab * config.model.hidden_size


def _tokens(config: RunConfig) -> int:
    return config.microbatch * config.data.sequence_length
