"""The shape of an Argonne model, under its 2.0 names and the 1.x aliases, checked before anything is built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from shared.errors import ConfigError

LEGACY_NAMES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "block_size": "max_position_embeddings",
}
C = TypeVar("C", bound=type)


def rename_legacy(names: Mapping[str, Any]) -> dict[str, Any]:
    """`names` with the Argonne 1.x names replaced by today's.

    Raises: ConfigError if an old and a new name are both given and differ, or a name has gone.

    >>> rename_legacy({"n_layer": 2, "hidden_size": 64})
    {'hidden_size': 64, 'num_hidden_layers': 2}
    """
    if "use_gradient_checkpointing" in names:
        raise ConfigError(
            "model.use_gradient_checkpointing is no part of the architecture: set training.activation_checkpointing to "
            "full, selective or none"
        )
    renamed = {name: value for name, value in names.items() if name not in LEGACY_NAMES}
    for old, new in LEGACY_NAMES.items():
        if old in names and renamed.setdefault(new, names[old]) != names[old]:
            raise ConfigError(f"{old}={names[old]} contradicts {new}={renamed[new]}: give one of them")
    return renamed


def _with_legacy_names(cls: C) -> C:
    """Let the constructor take the Argonne 1.x names too; only there is it known which names were given."""
    init = vars(cls)["__init__"]

    def __init__(self: Any, **names: Any) -> None:  # noqa: N807
        init(self, **rename_legacy(names))

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


@_with_legacy_names
@dataclass(frozen=True)
class ArgonneConfig:
    """The architecture. None means: worked out from the other fields, or from the dataset.

    Raises: ConfigError if the sizes do not fit together.
    """

    architecture: Literal["argonne-2", "argonne-1"] = "argonne-2"
    """argonne-1: what 1.x models are, to go on with one that was imported (train/legacy.py)."""
    vocab_size: int | None = None
    """Rows of the embedding. None: the dataset's highest id + 1, rounded up to a multiple of 64."""
    hidden_size: int = 4096
    num_hidden_layers: int = 48
    num_attention_heads: int = 32
    head_size: int | None = None
    """Width of a head. None: hidden_size / num_attention_heads."""
    num_key_value_heads: int | None = None
    """None: half the heads, or the nearest smaller number that divides them."""
    intermediate_size: int | None = None
    """None: 8/3 of hidden_size, rounded up to a multiple of 256."""
    max_position_embeddings: int = 4096
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    sliding_window: int | None = None
    """Tokens a token attends to, itself included. None: all before it."""
    use_flash_attention: bool = True
    """Fused attention. False: plain matrix products with the softmax in fp32."""
    qk_norm: bool = False
    """Norm each head's queries and keys. Source: Henry et al., Query-Key Normalization, arXiv 2010.04245."""
    logit_softcap: float | None = None
    """Keep the logits within +-this, smoothly. Source: Gemma 2, arXiv 2408.00118."""
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    pad_token_id: int | None = None
    """What follows the end of a sampled text in a batch. None: eos_token_id."""
    bos_token_id: int | None = None
    """What an empty prompt starts from. None: eos_token_id."""
    eos_token_id: int | None = None
    """Ends a sampled text. None: the dataset's end-of-document id."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"):
            at_least(f"model.{name}", getattr(self, name), 1)
        for name in ("vocab_size", "head_size", "num_key_value_heads", "intermediate_size", "sliding_window"):
            if getattr(self, name) is not None:
                at_least(f"model.{name}", getattr(self, name), 1)
        for name in ("eos_token_id", "bos_token_id"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < (self.vocab_size or math.inf):
                rows = f"a number below model.vocab_size {self.vocab_size}" if self.vocab_size else "0 or more"
                raise ConfigError(f"model.{name} {number} is no id of the model: {rows} is wanted")
        if self.logit_softcap is not None and self.logit_softcap <= 0:
            raise ConfigError(f"model.logit_softcap {self.logit_softcap} is too small: more than 0 is wanted")
        for name in ("attention_dropout", "hidden_dropout"):
            below_one(f"model.{name}", getattr(self, name))
        heads = self.num_attention_heads
        if self.architecture == "argonne-1":
            self._check_first()
        elif self.head_size is not None:
            if self.head_size % 2:
                raise ConfigError(f"model.head_size {self.head_size} is odd: halves of it are rotated")
        elif self.hidden_size % (2 * heads):
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not an even multiple of num_attention_heads {heads}: "
                f"{nearest_multiple(self.hidden_size, 2 * heads)} is"
            )
        if heads % self.kv_heads:
            divisors = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ConfigError(
                f"model.num_key_value_heads {self.kv_heads} does not divide num_attention_heads {heads}: "
                f"one of {divisors} does"
            )

    def _check_first(self) -> None:
        """Raises: ConfigError for what no 1.x model is."""
        heads = self.num_attention_heads
        if self.hidden_size % heads:
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}: "
                f"{nearest_multiple(self.hidden_size, heads)} is"
            )
        wanted: dict[str, float | None] = {"num_key_value_heads": heads, "intermediate_size": 4 * self.hidden_size}
        wanted |= {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}
        wanted |= {
            "head_size": None,
            "qk_norm": False,
            "logit_softcap": None,
            "sliding_window": None,
            "rope_theta": 10000.0,
        }
        for name, value in wanted.items():
            if getattr(self, name) != value:
                raise ConfigError(f"model.{name} {getattr(self, name)} is found: argonne-1 is always {value}")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        if self.num_key_value_heads is not None:
            return self.num_key_value_heads
        heads = self.num_attention_heads
        return next(n for n in range(max(heads // 2, 1), 0, -1) if heads % n == 0)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """Of the queries of all heads, and of what they gather."""
        return self.num_attention_heads * self.head_dim

    @property
    def feed_forward(self) -> int:
        """Inner width of the SwiGLU."""
        return self.intermediate_size or math.ceil(8 * self.hidden_size // 3 / 256) * 256

    @property
    def vocab(self) -> int:
        """Rows of the embedding and columns of the logits.

        Raises: ConfigError if neither the recipe nor a dataset has said.
        """
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is not set: give it, or resolve the configuration with a dataset")
        return self.vocab_size

    def resolved(self, vocab_size: int, end_of_document_id: int) -> "ArgonneConfig":
        """This configuration with every None replaced that has a number behind it.

        Raises: ConfigError if the recipe's vocabulary is too small for the dataset's ids.
        """
        if self.vocab_size is not None and self.vocab_size < vocab_size:
            raise ConfigError(
                f"model.vocab_size {self.vocab_size} is too small for the dataset, whose tokenizer gives ids up to "
                f"{vocab_size - 1}: leave it out or give at least {vocab_size}"
            )
        eos = end_of_document_id if self.eos_token_id is None else self.eos_token_id
        return replace(
            self,
            vocab_size=self.vocab_size or math.ceil(vocab_size / 64) * 64,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.feed_forward,
            eos_token_id=eos,
            bos_token_id=eos if self.bos_token_id is None else self.bos_token_id,
            pad_token_id=eos if self.pad_token_id is None else self.pad_token_id,
        )


def at_least(name: str, value: float, least: int) -> None:
    """Raises: ConfigError if `value` is smaller than `least`."""
    if value < least:
        raise ConfigError(f"{name} {value} is too small: at least {least} is wanted")


def below_one(name: str, value: float) -> None:
    """Raises: ConfigError if `value` is not a share of less than all."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name} {value} is out of range: 0 or more and less than 1 is wanted")


def nearest_multiple(value: int, factor: int) -> int:
    """The multiple of `factor`, not zero, nearest to `value`."""
    return max(round(value / factor), 1) * factor
