"""Pure: an Argonne 2 model under the names of Llama, which everybody's tools read, and back.

Rotation is by halves in both, so that no weight is permuted: a name is all that differs.
"""

import re
from collections.abc import Mapping
from typing import Any

from shared.errors import ConfigError, FormatError
from train.architecture import ArgonneConfig

BLOCKS, LAYERS = "blocks.", "model.layers."
IN_A_BLOCK = {
    "input_norm.": "input_layernorm.",
    "post_norm.": "post_attention_layernorm.",
    "attn.": "self_attn.",
    "mlp.": "mlp.",
}
OUTSIDE = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
SAME = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias"),
    *("mlp_bias", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Fields of both configurations."""
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
"""What `transformers` takes a field for that a config.json leaves out, where it is not what Argonne does."""


def llama_name(name: str) -> str:
    """The parameter `name` of an Argonne model, in a Llama.

    >>> llama_name("blocks.3.attn.q_proj.weight"), llama_name("norm.weight")
    ('model.layers.3.self_attn.q_proj.weight', 'model.norm.weight')
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, number, rest = name.split(".", 2)
    ours = next(prefix for prefix in IN_A_BLOCK if rest.startswith(prefix))
    return f"{LAYERS}{number}.{IN_A_BLOCK[ours]}{rest.removeprefix(ours)}"


def argonne_name(name: str) -> str | None:
    """The parameter `name` of a Llama, in an Argonne model; None if it has no such parameter.

    >>> argonne_name("model.layers.3.self_attn.q_proj.weight"), argonne_name("model.rotary_emb.inv_freq")
    ('blocks.3.attn.q_proj.weight', None)
    """
    for ours, theirs in OUTSIDE.items():
        if name == theirs:
            return ours
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not found:
        return None
    for ours, theirs in IN_A_BLOCK.items():
        if found[2].startswith(theirs):
            return f"{BLOCKS}{found[1]}.{ours}{found[2].removeprefix(theirs)}"
    return None


def llama_config(config: ArgonneConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model of `config`, whose None are worked out.

    Raises: ConfigError if it does what no Llama does.
    """
    window = config.sliding_window
    strange = {
        "qk_norm": config.qk_norm,
        "logit_softcap": config.logit_softcap is not None,
        "sliding_window": window is not None and window < config.max_position_embeddings,
    }
    for name in (name for name, is_used in strange.items() if is_used):
        raise ConfigError(
            f"model.{name} {getattr(config, name)} is found, which LlamaForCausalLM does not have: only a model "
            "without it can be exported"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: getattr(config, name) for name in SAME},
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "torch_dtype": dtype,
        "use_cache": True,
    }


def argonne_config(found: Mapping[str, Any], where: str) -> ArgonneConfig:
    """The architecture that the config.json of a Llama describes.

    Raises: FormatError if it is not one, or does something that an Argonne model does not.
    """
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    told = {**LLAMA_DEFAULTS, **{name: found[name] for name in SAME if found.get(name) is not None}}
    heads = told["num_attention_heads"]
    size = found.get("head_dim") or told["hidden_size"] // heads
    wanted: dict[str, tuple[Any, Any]] = {
        "model_type": (found.get("model_type"), "llama"),
        "hidden_act": (found.get("hidden_act", "silu"), "silu"),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "quantization_config": (found.get("quantization_config"), None),
    }
    for name, (value, known) in wanted.items():
        if value != known:
            raise FormatError(f"{where} says {name} {value!r}: only a Llama of {name} {known!r} can be imported")
    eos = told.get("eos_token_id")
    return ArgonneConfig(
        **{
            **told,
            "num_key_value_heads": told.get("num_key_value_heads", heads),
            "head_size": None if size == told["hidden_size"] / heads else size,
            "rope_theta": rope.get("rope_theta", found.get("rope_theta", 10000.0)),
            "eos_token_id": eos[0] if isinstance(eos, list) else eos,
        }
    )
