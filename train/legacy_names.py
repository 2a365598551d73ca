"""Pure: what the tensors of an old Argonne checkpoint are called today and back, and which are nothing of a model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.errors import FormatError
from train.architecture import LEGACY_NAMES, ArgonneConfig

WRAPPERS = {"_orig_mod", "module"}
"""What torch.compile and DistributedDataParallel put into a name, in any order."""
OUTSIDE_1 = {
    "position_embedding": "embed_positions.weight",
    "token_embedding.weight": "embed_tokens.weight",
    "ln_f.weight": "norm.weight",
    "ln_f.bias": "norm.bias",
    "head.weight": "lm_head.weight",
}
IN_A_BLOCK_1 = {
    "ln1": "input_norm",
    "attn.query": "attn.q_proj",
    "attn.key": "attn.k_proj",
    "attn.value": "attn.v_proj",
    "attn.proj": "attn.o_proj",
    "ln2": "post_norm",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}
"""In the order of the parameters, each weight before its bias."""
IN_A_BLOCK_2 = (
    *("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj"),
    *("input_norm", "post_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
OUTSIDE_2 = ("embed_tokens.weight", "norm.weight", "lm_head.weight")
STAGED = re.compile(r"pipeline_stages\.(\d+)\.(\d+)\.(.+)")
IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
DROPPED_MASK = "dropped: a causal mask, which is computed"
DROPPED_STAGE = "dropped: the same tensor as under blocks."


def unwrapped(key: str) -> str:
    """`key` without the names of wrappers.

    >>> unwrapped("_orig_mod.module.blocks.0.ln1.weight"), unwrapped("module._orig_mod.head.weight")
    ('blocks.0.ln1.weight', 'head.weight')
    """
    return ".".join(word for word in key.split(".") if word not in WRAPPERS)


def generation_of(keys: Iterable[str]) -> int:
    """1 or 2, by the names of the tensors.

    Raises: FormatError if they are of neither.
    """
    names = {unwrapped(key) for key in keys}
    if "token_embedding.weight" in names:
        return 1
    if "embed_tokens.weight" in names:
        return 2
    raise FormatError(
        "it has neither token_embedding.weight (Argonne 1.x) nor embed_tokens.weight (2.0): it is not the checkpoint "
        "of an Argonne model"
    )


def fates(keys: Sequence[str]) -> dict[str, str]:
    """What becomes of each key: its name today, or "dropped: " and why.

    Raises: FormatError for a key that is none of its generation's.
    """
    generation = generation_of(keys)
    renumbered = blocks_of_stages([unwrapped(key) for key in keys])
    return {key: _fate(renumbered[unwrapped(key)], generation) for key in keys}


def blocks_of_stages(names: Sequence[str]) -> dict[str, str]:
    """Names in which pipeline_stages.S.J became the number of the block in the whole model.

    Where blocks.N are there too, what is under pipeline_stages is the same once more.

    >>> names = [f"pipeline_stages.{place}.ln1.weight" for place in ("0.0", "0.1", "1.0")]
    >>> [name.split(".")[1] for name in blocks_of_stages(names).values()]
    ['0', '1', '2']
    """
    staged = {name: found for name in names if (found := STAGED.fullmatch(name))}
    if any(IN_BLOCK.fullmatch(name) for name in names):
        return {name: DROPPED_STAGE if name in staged else name for name in names}
    places = sorted({(int(found[1]), int(found[2])) for found in staged.values()})
    number = {place: index for index, place in enumerate(places)}
    most = max((sum(stage == s for s, _ in places) for stage, _ in places), default=0)
    for (stage, place), index in number.items():  # every stage but the last is full
        if stage * most + place != index:
            raise FormatError(
                f"pipeline_stages.{stage}.{place} cannot be block {index}: a stage before the last has fewer than "
                f"{most} blocks, so some are missing"
            )
    return {
        name: f"blocks.{number[int(found[1]), int(found[2])]}.{found[3]}" if (found := staged.get(name)) else name
        for name in names
    }


def _fate(name: str, generation: int) -> str:
    if name.startswith("dropped: "):
        return name
    if name in (OUTSIDE_1 if generation == 1 else OUTSIDE_2):
        return OUTSIDE_1.get(name, name)
    found = IN_BLOCK.fullmatch(name)
    if found and found[2] == "attn.mask" and generation == 1:
        return DROPPED_MASK
    module, _, kind = found[2].rpartition(".") if found else ("", "", "")
    known: Mapping[str, str] = IN_A_BLOCK_1 if generation == 1 else dict.fromkeys(IN_A_BLOCK_2, "")
    if found is None or module not in known or kind not in ("weight", "bias"):
        raise FormatError(f"{name!r} is no tensor of Argonne {generation}: it cannot be imported")
    return f"blocks.{found[1]}.{known[module] or module}.{kind}"


def parameter_order(generation: int, names: Iterable[str]) -> list[str]:
    """Names of today in the order in which the old model's optimizer numbered its parameters."""
    there = set(names)
    layers = sorted({int(found[1]) for name in there if (found := IN_BLOCK.fullmatch(name))})
    modules = list(IN_A_BLOCK_1.values()) if generation == 1 else list(IN_A_BLOCK_2)
    first = ["embed_positions.weight", "embed_tokens.weight"]
    blocks = [f"blocks.{n}.{module}.{kind}" for n in layers for module in modules for kind in ("weight", "bias")]
    ordered = [*first, *blocks, "norm.weight", "norm.bias", "lm_head.weight"]
    return [name for name in ordered if name in there]


def old_name(name: str) -> str:
    """The parameter `name` of a 1.x model, as 1.x called it.

    >>> old_name("blocks.3.mlp.up_proj.bias"), old_name("lm_head.weight")
    ('blocks.3.mlp.fc1.bias', 'head.weight')
    """
    for old, ours in OUTSIDE_1.items():
        if name == ours:
            return old
    blocks, number, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    old = next(old for old, ours in IN_A_BLOCK_1.items() if module == ours)
    return f"{blocks}.{number}.{old}.{kind}"


def old_config(config: ArgonneConfig, dtype: str, code: str) -> dict[str, Any]:
    """The config.json of a 1.x model, whose classes are in the module `code` beside it."""
    return {
        "architectures": ["ArgonneModel"],
        "model_type": "argonne",
        "auto_map": {"AutoConfig": f"{code}.ArgonneConfig", "AutoModelForCausalLM": f"{code}.ArgonneModel"},
        "vocab_size": config.vocab,
        **{old: getattr(config, ours) for old, ours in LEGACY_NAMES.items()},
        "dropout": config.hidden_dropout,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
    }
