"""What a run is asked to do: frozen dataclasses. Recipes (recipes/*.toml) are their instances."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from shared.config import read_toml, structure
from shared.errors import ConfigError
from train.architecture import ArgonneConfig, at_least, below_one, rename_legacy
from train.data_config import DataConfig

__all__ = ["DataConfig"]  # of `RunConfig`

Recompute = Literal["none", "selective", "full"]
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer, its schedule and the clipping of its gradients."""

    name: Literal["adamw", "muon"] = "adamw"
    """muon: the matrices of the blocks by Muon; embedding, head, norms and biases by AdamW."""
    learning_rate: float = 3e-4
    """Peak, reached after the warmup; the same for Muon, whose updates are scaled to the size of AdamW's."""
    min_learning_rate: float = 3e-5
    """Where the warmup starts, and where cosine and wsd end."""
    warmup_steps: int = 2000
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warmup. wsd: the peak, then a cooldown, before which a run can be continued with a later end."""
    cooldown_fraction: float = 0.2
    """Share of all steps in which wsd goes down, linearly."""
    embedding_learning_rate_factor: float = 1.0
    """Times the learning rate, for the embedding and the head."""
    weight_decay: float = 0.1
    """On matrices only, never on norms and biases."""
    decay_embeddings: bool = True
    """Whether the embedding and the head count as matrices for weight_decay."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    """Muon's."""
    max_grad_norm: float = 1.0
    """Of the whole model's gradient."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "min_learning_rate", "warmup_steps", "weight_decay"):
            at_least(f"optimizer.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2", "momentum"):
            below_one(f"optimizer.{name}", getattr(self, name))
        for name in ("epsilon", "max_grad_norm", "embedding_learning_rate_factor"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optimizer.{name} {getattr(self, name)} is too small: more than 0 is wanted")
        if not 0 <= self.cooldown_fraction <= 1:
            raise ConfigError(f"optimizer.cooldown_fraction {self.cooldown_fraction} is out of range: 0 to 1 is wanted")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how small a piece at a time, and in which precision."""

    total_steps: int | None = None
    """Where the schedule ends; `--stop-step` ends a run earlier without changing it."""
    total_tokens: int | None = None
    """The same in tokens, instead of total_steps; the last step may go past it."""
    microbatch: int | None = None
    """Sequences that a rank puts through the model at once. None: the fastest, measured before the first step."""
    precision: Literal["fp32", "bf16", "float8"] = "fp32"
    """Of matrix products; weights, reductions and the loss are fp32 in all. float8: bf16, and the projections of the
    blocks by torchao in float8, on a GPU that has it."""
    compile: bool = False
    """Compile the blocks, one graph for all. Where that fails they run as they are, and events.jsonl says so."""
    activation_checkpointing: Recompute = "none"
    """What is computed again in the backward pass. selective: all but matrix products and attention. full: everything
    but a block's input."""
    checkpoint_stride: int = 1
    """Every so many blocks are checkpointed."""
    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator in the gradient; reported losses are without it."""
    seed: int = 0
    """Of the weights, the shuffled order and dropout."""
    validate_every: int | None = None
    """Steps. None: only after the last step."""

    def __post_init__(self) -> None:
        at_least("training.checkpoint_stride", self.checkpoint_stride, 1)
        at_least("training.z_loss", self.z_loss, 0)
        for name in ("total_steps", "total_tokens", "microbatch", "validate_every"):
            if getattr(self, name) is not None:
                at_least(f"training.{name}", getattr(self, name), 1)
        if self.total_steps is not None and self.total_tokens is not None:
            raise ConfigError(
                f"training.total_steps {self.total_steps} and training.total_tokens {self.total_tokens} are both "
                "given: one is wanted, set the other to None (in a recipe, leave it out)"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    every: int | None = None
    """Steps. None: only when the run stops."""
    keep: int = 2
    """The newest valid ones."""
    asynchronous: bool = True
    """Train on while a checkpoint is written, from a copy of weights and optimizer state in host memory."""

    def __post_init__(self) -> None:
        at_least("checkpoint.keep", self.keep, 1)
        if self.every is not None:
            at_least("checkpoint.every", self.every, 1)


@dataclass(frozen=True)
class FullyShardedConfig:
    """How weights are sharded: by the fsdp strategy, and in a pipeline with data_parallel = "sharded"."""

    reshard_after_forward: bool = True
    """Give a block's gathered weights back after its forward pass. False: keep them until the end of the step, so that
    they are gathered once; a pipeline always does."""
    shard_size: int | None = None
    """Ranks that share one copy of the weights, say those of a node; copies are replicated. None: all ranks."""
    prefetch: int = 1
    """Blocks whose weights are gathered ahead of the one that computes, where they were given back."""

    def __post_init__(self) -> None:
        at_least("fsdp.prefetch", self.prefetch, 0)
        if self.shard_size is not None:
            at_least("fsdp.shard_size", self.shard_size, 1)


@dataclass(frozen=True)
class PipelineConfig:
    """Used by the pipeline strategy alone."""

    stages: int | None = None
    """None: one for each rank; with fewer, the ranks form several pipelines that share the global batch."""
    schedule: Literal["1f1b", "interleaved-1f1b", "zero-bubble"] = "1f1b"
    """zero-bubble: fill waiting with the gradients of the weights; not with compiled blocks, which cannot be split."""
    stages_per_rank: int | None = None
    """Parts of the model that a stage holds, so that there is less waiting. None: 2 for interleaved-1f1b, else 1."""
    split: Literal["measured", "computed"] = "measured"
    """Balance the stages by what a block, the embedding and the head take on this device, or by multiplications."""
    data_parallel: Literal["replicated", "sharded"] = "replicated"
    """sharded: the ranks that hold the same stage share its weights as [fsdp] says."""

    def __post_init__(self) -> None:
        for name in ("stages", "stages_per_rank"):
            if getattr(self, name) is not None:
                at_least(f"pipeline.{name}", getattr(self, name), 1)

    @property
    def parts_per_stage(self) -> int:
        """`stages_per_rank`, worked out."""
        return self.stages_per_rank or (2 if self.schedule == "interleaved-1f1b" else 1)


@dataclass(frozen=True)
class RecoveryConfig:
    """What a run puts up with, and what it does then."""

    max_skipped_steps: int = 10
    """Steps that may be left out over the whole run before it ends: their loss or gradient was not finite."""
    spike_score: float | None = 10.0
    """Standard deviations above the median of the last steps from which a loss or gradient norm is an event. None:
    never."""
    rollback_steps: int | None = None
    """At a spike of the loss, go back at least so many steps, to a checkpoint, and skip what was read since. None: go
    on. It counts as a skipped step."""
    hang_timeout_s: float | None = 60.0
    """A rank that has not moved for so long, or for 5 times what nearly all its steps take, is hung, and all ranks
    start again; 10 times as long in validation, 30 in saving and at the start. None: nobody watches."""
    deadline_margin_s: float = 30.0
    """Seconds to spare before the job ends, beside those of a step and two saves: for what takes longer than before."""

    def __post_init__(self) -> None:
        at_least("recovery.deadline_margin_s", self.deadline_margin_s, 0)
        at_least("recovery.max_skipped_steps", self.max_skipped_steps, 0)
        if self.spike_score is not None:
            at_least("recovery.spike_score", self.spike_score, 0)
        if self.rollback_steps is not None:
            at_least("recovery.rollback_steps", self.rollback_steps, 1)
        if self.hang_timeout_s is not None:
            at_least("recovery.hang_timeout_s", self.hang_timeout_s, 1)


@dataclass(frozen=True)
class RunConfig:
    """All of a recipe."""

    model: ArgonneConfig = field(default_factory=ArgonneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    fsdp: FullyShardedConfig = field(default_factory=FullyShardedConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    strategy: Literal["fsdp", "pipeline"] = "fsdp"

    def __post_init__(self) -> None:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"data.sequence_length {self.data.sequence_length} is longer than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}: shorten the one or raise the other"
            )

    @property
    def microbatch(self) -> int:
        """Sequences that a rank puts through the model at once: 1 as long as nobody has chosen."""
        return self.training.microbatch or 1

    def with_microbatch(self, microbatch: int) -> "RunConfig":
        """The same with another microbatch."""
        return replace(self, training=replace(self.training, microbatch=microbatch))

    @property
    def total_steps(self) -> int:
        """Optimizer steps until the schedule ends.

        Raises: ConfigError if neither training.total_steps nor training.total_tokens is given.
        """
        if self.training.total_steps is not None:
            return self.training.total_steps
        if self.training.total_tokens is None:
            raise ConfigError("training.total_steps is not set: give it, or training.total_tokens")
        return -(-self.training.total_tokens // (self.data.global_batch * self.data.sequence_length))


def load_recipe(name: str) -> RunConfig:
    """The recipe of that name in recipes/, or in the TOML file of that path.

    Raises: ConfigError for an unknown name or key, a wrong type, or values that do not fit together.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file() and path.parent == RECIPES:
        known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
        raise ConfigError(f"recipe {name!r} not found: one of {known}, or the path of a .toml file, is wanted")
    tables = read_toml(path)
    if isinstance(tables.get("model"), dict):
        tables["model"] = rename_legacy(tables["model"])
    return structure(tables, RunConfig, str(path))
