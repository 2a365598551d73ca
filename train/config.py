"""What a run is asked to do: frozen dataclasses. Recipes (recipes/*.toml) are their instances."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shared.config import read_toml, structure
from shared.errors import ConfigError
from train.architecture import ArgonneConfig, at_least, below_one, nearest_multiple, rename_legacy

Recompute = Literal["none", "selective", "full"]
RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DataConfig:
    """Which chunks an optimizer step reads."""

    sequence_length: int = 2048
    """Targets of one sequence; any length, whatever the dataset was written with."""
    global_batch: int = 32
    """Sequences of one optimizer step, over all ranks."""
    document_mask: bool = False
    """Tokens attend only within their document."""
    restart_positions: bool = False
    """Positions count from the start of a token's document."""
    order: Literal["natural", "shuffled"] = "shuffled"
    packing: Literal["best-fit", "whole"] | None = None
    """Chunks made by `make pack` for this sequence_length. None: those of the plain stream."""
    validation_chunks: int = 0
    """How many chunks the validation loss is over, a multiple of global_batch."""
    validation: Literal["reserved", "split"] = "reserved"
    """reserved: the last chunks of the dataset, never trained on. split: the last of TOKENS/validation."""

    def __post_init__(self) -> None:
        at_least("data.sequence_length", self.sequence_length, 1)
        at_least("data.global_batch", self.global_batch, 1)
        at_least("data.validation_chunks", self.validation_chunks, 0)
        if self.validation_chunks % self.global_batch:
            raise ConfigError(
                f"data.validation_chunks {self.validation_chunks} is not a multiple of data.global_batch "
                f"{self.global_batch}: {nearest_multiple(self.validation_chunks, self.global_batch)} is"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, its schedule (linear warmup, then cosine) and the clipping of its gradients."""

    learning_rate: float = 3e-4
    """Peak, reached after the warmup."""
    min_learning_rate: float = 3e-5
    """Where the warmup starts and the cosine ends."""
    warmup_steps: int = 2000
    weight_decay: float = 0.1
    """On matrices only."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Of the whole model's gradient."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "min_learning_rate", "warmup_steps", "weight_decay"):
            at_least(f"optimizer.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            below_one(f"optimizer.{name}", getattr(self, name))
        for name in ("epsilon", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optimizer.{name} {getattr(self, name)} is too small: more than 0 is wanted")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how small a piece at a time, and in which precision."""

    total_steps: int = 10000
    """Where the schedule ends; `--stop-step` ends a run earlier without changing it."""
    microbatch: int = 1
    """Sequences that a rank puts through the model at once."""
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
        at_least("training.total_steps", self.total_steps, 1)
        at_least("training.microbatch", self.microbatch, 1)
        at_least("training.checkpoint_stride", self.checkpoint_stride, 1)
        at_least("training.z_loss", self.z_loss, 0)
        if self.validate_every is not None:
            at_least("training.validate_every", self.validate_every, 1)


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and how many are kept."""

    every: int | None = None
    """Steps. None: only when the run stops."""
    keep: int = 2
    """The newest valid ones."""

    def __post_init__(self) -> None:
        at_least("checkpoint.keep", self.keep, 1)
        if self.every is not None:
            at_least("checkpoint.every", self.every, 1)


@dataclass(frozen=True)
class PipelineConfig:
    """Used by the pipeline strategy alone."""

    stages: int | None = None
    """None: one for each rank; with fewer, the ranks form several pipelines that share the global batch."""

    def __post_init__(self) -> None:
        if self.stages is not None:
            at_least("pipeline.stages", self.stages, 1)


@dataclass(frozen=True)
class RunConfig:
    """All of a recipe."""

    model: ArgonneConfig = field(default_factory=ArgonneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    strategy: Literal["fsdp", "pipeline"] = "fsdp"

    def __post_init__(self) -> None:
        if self.data.sequence_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"data.sequence_length {self.data.sequence_length} is longer than model.max_position_embeddings "
                f"{self.model.max_position_embeddings}: shorten the one or raise the other"
            )


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
