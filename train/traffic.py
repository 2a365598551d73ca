"""Pure: the bytes that a rank sends in one optimizer step, by kind, with collectives done around a ring.

A ring of n ranks moves (n - 1) / n of what is gathered or scattered past every rank, and twice that to reduce a tensor
that all keep. Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, JPDC 2009.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from train.architecture import ArgonneConfig
from train.config import RunConfig
from train.layout import Layout

Shape = tuple[int, ...]
Traffic = Counter[str]
"""Bytes by kind: gather, scatter, reduce, send."""


def gathered(size_bytes: int, ranks: int) -> int:
    """Bytes that each of `ranks` sends so that all have the `size_bytes` of which each had its share."""
    return size_bytes * (ranks - 1) // ranks


def block_shapes(config: ArgonneConfig) -> list[Shape]:
    """Of a block's parameters."""
    width, kv_width, inner = config.hidden_size, config.kv_heads * config.head_dim, config.feed_forward
    matrices = [(config.query_width, width), (kv_width, width), (kv_width, width), (width, config.query_width)]
    is_first_generation = config.architecture == "argonne-1"
    feed_forward = [(inner, width)] * (1 if is_first_generation else 2) + [(width, inner)]
    biases = 4 * [config.attention_bias] + len(feed_forward) * [config.mlp_bias]
    matrices += feed_forward
    return [
        *matrices,
        *((rows,) for (rows, _), biased in zip(matrices, biases, strict=True) if biased),
        *[(width,)] * (4 if is_first_generation else 2),
        *[(config.head_dim,)] * (2 * config.qk_norm),
    ]


def end_shapes(config: ArgonneConfig, *, is_first: bool, is_last: bool) -> list[Shape]:
    """Of the parameters of a part beside its blocks."""
    table = (config.vocab, config.hidden_size)
    tables = [table] * (1 if config.tie_word_embeddings and is_first and is_last else is_first + is_last)
    if config.architecture == "argonne-1":
        positions = (config.max_position_embeddings, config.hidden_size)
        return tables + [positions] * is_first + [(config.hidden_size,)] * (2 * is_last)
    return tables + [(config.hidden_size,)] * is_last


def step_traffic(config: RunConfig, layout: Layout, parts: Sequence[range], stage: int) -> Traffic:
    """Bytes that a rank of `stage` sends in one optimizer step. Scalars are not counted."""
    total: Traffic = Counter()
    for number in range(stage, layout.num_parts, layout.num_stages):
        ends = {"is_first": number == 0, "is_last": number == layout.num_parts - 1}
        groups = [block_shapes(config.model)] * len(parts[number])
        root = end_shapes(config.model, **ends)
        if config.strategy == "fsdp" or layout.shards > 1:
            total += _sharded(config, layout, groups, root)
        elif layout.replicas > 1:
            total["reduce"] += sum(2 * gathered(4 * math.prod(s), layout.replicas) for g in (*groups, root) for s in g)
        hidden = 4 * config.microbatch * config.data.sequence_length * config.model.hidden_size
        total["send"] += hidden * layout.microbatches * ((not ends["is_first"]) + (not ends["is_last"]))
        if config.model.tie_word_embeddings and ends["is_first"] != ends["is_last"]:
            rows = math.ceil(config.model.vocab / layout.shards)
            total["reduce"] += 2 * gathered(4 * rows * config.model.hidden_size, 2)
    return +total


def _sharded(config: RunConfig, layout: Layout, blocks: Sequence[list[Shape]], root: list[Shape]) -> Traffic:
    """Of weights that are gathered, and gradients that are scattered once and added up over the copies."""
    reshards = config.strategy == "fsdp" and config.fsdp.reshard_after_forward
    forward_and_backward = 2 * layout.microbatches if reshards else 1
    of_root = layout.microbatches if reshards else 1
    width = 4 if config.training.precision == "fp32" else 2
    elements = [padded(block, layout.shards) for block in blocks]
    ends = padded(root, layout.shards)
    gathers = width * forward_and_backward * sum(elements) + 4 * of_root * ends
    gradients = 4 * (sum(elements) + ends)
    return Counter(
        gather=gathered(gathers, layout.shards),
        scatter=gathered(gradients, layout.shards),
        reduce=2 * gathered(gradients // layout.shards, layout.replicas),
    )


def padded(shapes: Iterable[Shape], shards: int) -> int:
    """Elements of parameters whose rows are shared out evenly, with what is added to make them even.

    >>> padded([(5, 2), (4,)], 2)
    16
    """
    return sum(math.ceil(rows / shards) * shards * math.prod(rest) for rows, *rest in shapes)
