"""How a run is laid out over ranks, and what it costs: pure arithmetic, done before any process is started."""

from dataclasses import dataclass
from functools import cache

from shared.errors import ConfigError
from train.architecture import ArgonneConfig, at_least, nearest_multiple
from train.config import RunConfig

BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and two moments of AdamW


@dataclass(frozen=True)
class Layout:
    """Ranks as a grid: `num_stages` pipeline stages, each held by `dp_size` data-parallel ranks."""

    strategy: str
    num_stages: int
    dp_size: int
    microbatches: int
    """That one rank puts through the model in one optimizer step."""

    def __str__(self) -> str:
        if self.strategy == "fsdp":
            return f"fsdp over {self.dp_size} ranks, {self.microbatches} microbatches"
        return f"pipeline of {self.num_stages} stages x {self.dp_size} data-parallel, {self.microbatches} microbatches"


def lay_out(config: RunConfig, world_size: int) -> Layout:
    """The layout of `config` on `world_size` ranks.

    Raises: ConfigError naming the number that does not divide and the nearest that does.
    """
    at_least("NPROC", world_size, 1)
    stages = 1 if config.strategy == "fsdp" else config.pipeline.stages or world_size
    if stages > config.model.num_hidden_layers:
        raise ConfigError(
            f"{stages} pipeline stages are too many for model.num_hidden_layers {config.model.num_hidden_layers}: "
            "set --pipeline.stages to at most that; the other ranks then share the global batch"
        )
    if world_size % stages:
        raise ConfigError(f"NPROC {world_size} is not a multiple of pipeline.stages {stages}: change one of them")
    dp_size = world_size // stages
    batch, microbatch = config.data.global_batch, config.training.microbatch
    if batch % (dp_size * microbatch):
        raise ConfigError(
            f"data.global_batch {batch} does not divide into microbatches of {microbatch} on {dp_size} data-parallel "
            f"ranks: {nearest_multiple(batch, dp_size * microbatch)} does, or change training.microbatch or NPROC"
        )
    microbatches = batch // (dp_size * microbatch)
    if microbatches < stages:
        raise ConfigError(
            f"{microbatches} microbatches cannot fill {stages} pipeline stages (1F1B needs at least one for each): "
            f"lower training.microbatch {microbatch} or raise data.global_batch {batch}"
        )
    return Layout(config.strategy, stages, dp_size, microbatches)


def block_parameters(config: ArgonneConfig) -> int:
    """Weights of one block's matrices.

    >>> block_parameters(ArgonneConfig(hidden_size=8, num_attention_heads=2, intermediate_size=16))
    576
    """
    attention = 2 * config.hidden_size * (config.hidden_size + config.kv_heads * config.head_dim)
    return attention + 3 * config.hidden_size * config.feed_forward


def num_parameters(config: ArgonneConfig) -> int:
    """Weights of the whole model's matrices and norms (biases are not counted)."""
    embeddings = config.vocab * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    norms = config.hidden_size * (2 * config.num_hidden_layers + 1)
    norms += 2 * config.head_dim * config.num_hidden_layers * config.qk_norm
    return config.num_hidden_layers * block_parameters(config) + embeddings + norms


def flops_per_token(config: ArgonneConfig, length: int) -> float:
    """Floating-point operations of one token's forward and backward pass.

    Two for each weight in a matrix product and each causal attention score or sum, and twice that backward;
    recomputed activations are not counted. Source: Chowdhery et al., PaLM, arXiv 2204.02311, appendix B.
    """
    blocks = config.num_hidden_layers * _block_cost(config, length)
    return 6.0 * (blocks + config.vocab * config.hidden_size)


def _block_cost(config: ArgonneConfig, length: int) -> int:
    """Multiplications of one block for one token, averaged over a causal sequence."""
    window = min(length, config.sliding_window or length)
    return block_parameters(config) + config.hidden_size * window * (2 * length - window) // length


def split_layers(config: ArgonneConfig, num_stages: int, length: int) -> list[range]:
    """The layers of each stage, such that the most expensive stage is as cheap as it can be.

    A block costs its multiplications, the first stage also an embedding row, the last also the head.

    >>> wide = ArgonneConfig(vocab_size=32000, hidden_size=256, num_hidden_layers=8, num_attention_heads=4)
    >>> split_layers(wide, 2, 512)
    [range(0, 7), range(7, 8)]
    """
    layers, block = config.num_hidden_layers, _block_cost(config, length)
    head = config.vocab * config.hidden_size

    def cost(first: int, end: int) -> int:
        return block * (end - first) + config.hidden_size * (first == 0) + head * (end == layers)

    @cache
    def best(first: int, stages: int) -> tuple[int, tuple[int, ...]]:
        """Cost of the dearest stage and the ends of the stages, for the layers from `first` on."""
        if stages == 1:
            return cost(first, layers), (layers,)
        options = []
        for end in range(first + 1, layers - stages + 2):
            dearest, ends = best(end, stages - 1)
            options.append((max(cost(first, end), dearest), (end, *ends)))
        return min(options)

    ends = best(0, num_stages)[1]
    return [range(first, end) for first, end in zip((0, *ends), ends, strict=False)]


def stage_bytes(config: RunConfig, layout: Layout) -> list[int]:
    """Bytes of weights, gradients, optimizer state and one microbatch's logits on a rank of each stage.

    A lower bound: activations come on top.
    """
    model = config.model
    logits = config.training.microbatch * config.data.sequence_length * model.vocab * 4
    if config.strategy == "fsdp":
        return [num_parameters(model) * BYTES_PER_PARAMETER // layout.dp_size + logits]
    stages = split_layers(model, layout.num_stages, config.data.sequence_length)
    parameters = [len(layers) * block_parameters(model) for layers in stages]
    parameters[0] += model.vocab * model.hidden_size
    if layout.num_stages > 1 or not model.tie_word_embeddings:
        parameters[-1] += model.vocab * model.hidden_size
    sizes = [number * BYTES_PER_PARAMETER for number in parameters]
    sizes[-1] += logits
    return sizes
