"""How a run is laid out over ranks, and what it costs: pure arithmetic, done before any process is started."""

from dataclasses import dataclass

from shared.errors import ConfigError
from train.architecture import ArgonneConfig, at_least, nearest_multiple
from train.bubble import require_schedulable
from train.config import RunConfig


@dataclass(frozen=True)
class Layout:
    """Ranks as a grid: `num_stages` pipeline stages x `replicas` copies of the weights x `shards` of each copy."""

    strategy: str
    num_stages: int
    replicas: int
    shards: int
    microbatches: int
    """That one rank puts through the model in one optimizer step."""
    parts: int = 1
    """Of the model that one stage holds: part p is on stage p % num_stages."""

    @property
    def dp_size(self) -> int:
        """Ranks that share the global batch."""
        return self.replicas * self.shards

    @property
    def num_parts(self) -> int:
        """Of the whole model."""
        return self.num_stages * self.parts

    def __str__(self) -> str:
        copies = f"{self.replicas} copies of {self.shards} shards" if self.replicas > 1 else f"{self.shards} ranks"
        if self.strategy == "fsdp":
            return f"fsdp over {copies}, {self.microbatches} microbatches"
        parts = f" of {self.parts} parts" if self.parts > 1 else ""
        sharded = f" in {self.shards} shards" if self.shards > 1 else ""
        return (
            f"pipeline of {self.num_stages} stages{parts} x {self.dp_size} data-parallel{sharded}, "
            f"{self.microbatches} microbatches"
        )


def lay_out(config: RunConfig, world_size: int) -> Layout:
    """The layout of `config` on `world_size` ranks.

    Raises: ConfigError naming the number that does not divide and the nearest that does.
    """
    at_least("NPROC", world_size, 1)
    is_pipeline = config.strategy == "pipeline"
    stages = (config.pipeline.stages or world_size) if is_pipeline else 1
    if world_size % stages:
        raise ConfigError(f"NPROC {world_size} is not a multiple of pipeline.stages {stages}: change one of them")
    dp_size = world_size // stages
    batch, microbatch = config.data.global_batch, config.microbatch
    if batch % (dp_size * microbatch):
        raise ConfigError(
            f"data.global_batch {batch} does not divide into microbatches of {microbatch} on {dp_size} data-parallel "
            f"ranks: {nearest_multiple(batch, dp_size * microbatch)} does, or change training.microbatch or NPROC"
        )
    microbatches = batch // (dp_size * microbatch)
    if is_pipeline:
        require_schedulable(config, stages, dp_size, microbatches)
    shards = _shards(config, dp_size)
    parts = config.pipeline.parts_per_stage if is_pipeline else 1
    return Layout(config.strategy, stages, dp_size // shards, shards, microbatches, parts)


def _shards(config: RunConfig, dp_size: int) -> int:
    """Ranks that share one copy of the weights."""
    if config.strategy == "pipeline" and config.pipeline.data_parallel == "replicated":
        return 1
    shards = config.fsdp.shard_size or dp_size
    if dp_size % shards:
        fitting = ", ".join(str(n) for n in range(1, dp_size + 1) if dp_size % n == 0)
        raise ConfigError(
            f"fsdp.shard_size {shards} does not divide the {dp_size} data-parallel ranks: one of {fitting} does"
        )
    return shards


def block_parameters(config: ArgonneConfig) -> int:
    """Weights of one block's matrices.

    >>> block_parameters(ArgonneConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16))
    576
    """
    attention = 2 * config.hidden_size * (config.query_width + config.kv_heads * config.head_dim)
    matrices = 2 if config.architecture == "argonne-1" else 3
    return attention + matrices * config.hidden_size * config.feed_forward


def num_parameters(config: ArgonneConfig) -> int:
    """Weights of the whole model's matrices and norms (biases are not counted)."""
    embeddings = config.vocab * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    if config.architecture == "argonne-1":
        embeddings += config.max_position_embeddings * config.hidden_size
    norms = config.hidden_size * (2 * config.num_hidden_layers + 1)
    norms += 2 * config.head_dim * config.num_hidden_layers * config.qk_norm
    return config.num_hidden_layers * block_parameters(config) + embeddings + norms


def flops_per_token(config: ArgonneConfig, length: int) -> float:
    """Floating-point operations of one token's forward and backward pass.

    Two for each weight in a matrix product and each causal attention score or sum, and twice that backward;
    recomputed activations are not counted. Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B.
    """
    blocks = config.num_hidden_layers * block_multiplications(config, length)
    return 6.0 * (blocks + config.vocab * config.hidden_size)


def block_multiplications(config: ArgonneConfig, length: int) -> int:
    """Multiplications of one block for one token, averaged over a causal sequence."""
    window = min(length, config.sliding_window or length)
    return block_parameters(config) + config.query_width * window * (2 * length - window) // length
