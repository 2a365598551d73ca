"""A run's newest checkpoint as a Hugging Face folder: whole, and shown to be the same model, or absent.

    <out>/config.json, model*.safetensors                 a Llama, its weights in files of at most 5 GB
    <out>/modeling_argonne.py                             instead, the classes of a 1.x model
    <out>/generation_config.json                          where a text ends, and which ids mean nothing
    <out>/tokenizer.json, tokenizer_config.json           the run's tokenizer, byte for byte
    <out>/README.md, loss.png                             what it was trained on, how, and how well

It is written under another name, loaded by `transformers` in a process of its own, compared, and only then there.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from shared.directories import exists, make_directory, move, remove_tree, temporary_name
from shared.errors import ConfigError, FormatError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME
from shared.storage import read_sealed, sha256_file, sync_file, write_file
from train.chain import read_with_chain
from train.checkpoint_directory import MANIFEST_NAME, newest
from train.export_form import Form, form_of
from train.export_gate import TENSORS_NAME, VECTORS_NAME
from train.extras import require
from train.loss_plot import draw_losses
from train.model import ArgonneModel
from train.model_card import model_card
from train.run_files import CHECKPOINTS_NAME, RUN_NAME
from train.sample import Sampling, generate, load_checkpoint
from train.strategy import evaluating

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Kind = Literal["fp32", "bf16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NUM_GREEDY = 64
TEXTS = (
    "",
    "The reader turned 1,234.50 pages in 1999.",
    "  two spaces,\ttabs\n\nand lines\r\n ",
    "def f(x): return {'a': x ** 2}  # 100%",
    "don't we'll THEY'RE it's",
    "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144, Gr\u00f6\u00dfe, na\u00efve caf\u00e9",
    "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "e\u0301 \u00e9 \u200b \ufeff \u2028",
)


@dataclass(frozen=True)
class Export:
    """What was exported."""

    step: int
    num_parameters: int
    files: dict[str, str]
    """Sha256 of each."""
    has_end: bool
    """Whether it is known how a document ends."""


def export(run: Path, out: Path, kind: Kind) -> Export:
    """Write the model of a run's newest checkpoint to `out`, a folder that is not there yet.

    Raises: ConfigError if there is something, a library is missing, or the model does what no Llama does; FormatError
    if there is no checkpoint, or what `transformers` loads is not the same model.
    """
    from train.weight_files import write_weights

    if exists(out):
        raise ConfigError(f"{out} is there already: name another folder, or delete it")
    require("hf", "transformers", "safetensors", "tokenizers")
    path, problems = newest(run / CHECKPOINTS_NAME)
    if path is None:
        raise FormatError("; ".join(problems.values()) or f"{run} has no checkpoint: name a run that saved one")
    model, step = load_checkpoint(run, path)
    manifest = read_sealed(path / MANIFEST_NAME)
    form = form_of(model.config, str(DTYPES[kind]).removeprefix("torch."))
    temporary = temporary_name(out)
    make_directory(temporary)
    try:
        written = {"config.json": _write_json(temporary / "config.json", form.config)}
        tokenizer = _write_tokenizer(temporary, run, model, written)
        written |= {name: write_file(temporary / name, [code]) for name, code in form.code.items()}
        written |= write_weights(temporary, _weights(model, form, kind))
        settings = _generation_config(model, tokenizer.get_vocab_size())
        written["generation_config.json"] = _write_json(temporary / "generation_config.json", settings)
        recorded, links = read_with_chain(run) if exists(run / RUN_NAME) else (None, [])
        if recorded and (curve := draw_losses(recorded, temporary, step)):
            sync_file(curve)
            written[curve.name] = sha256_file(curve)
        card = model_card(run, recorded, links, manifest, model, kind, tokenizer.get_vocab_size(), written)
        write_file(temporary / "README.md", [card.encode()])
        check(temporary, model, tokenizer)
        move(temporary, out)
    except BaseException:
        remove_tree(temporary)
        raise
    return Export(step, sum(p.numel() for p in model.parameters()), written, model.config.eos_token_id is not None)


@torch.no_grad()
def _weights(model: ArgonneModel, form: Form, kind: Kind) -> dict[str, Tensor]:
    """The model's parameters as they are there, rounded; the model is left with the rounded values."""
    weights = []
    for name, parameter in model.named_parameters():
        rounded = parameter.detach().to(DTYPES[kind])
        parameter.copy_(rounded)
        weights.append(form.tensor(name, rounded))
    return dict(weights)


def _write_tokenizer(directory: Path, run: Path, model: ArgonneModel, written: dict[str, str]) -> "Tokenizer":
    """The run's tokenizer; its files are among `written`."""
    from tokenizers import Tokenizer

    raw = read_bytes(run / TOKENIZER_NAME)
    written[TOKENIZER_NAME] = write_file(directory / TOKENIZER_NAME, [raw])
    tokenizer = Tokenizer.from_str(raw.decode())
    config = model.config
    ids = {"bos_token": config.bos_token_id, "eos_token": config.eos_token_id, "pad_token": config.pad_token_id}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **{name: tokenizer.id_to_token(number) for name, number in ids.items() if number is not None},
    }
    written["tokenizer_config.json"] = _write_json(directory / "tokenizer_config.json", settings)
    return tokenizer


def _generation_config(model: ArgonneModel, num_ids: int) -> dict[str, Any]:
    """Where a text ends; the rows that fill up the embedding are never chosen."""
    config = model.config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    filling = list(range(num_ids, config.vocab))
    return settings | ({"suppress_tokens": filling} if filling else {})


def _write_json(path: Path, document: dict[str, Any]) -> str:
    return write_file(path, [(json.dumps(document, indent=2) + "\n").encode()])


def check(folder: Path, model: ArgonneModel, tokenizer: "Tokenizer") -> None:
    """Raises: FormatError if `transformers`, in a process of its own, finds another model or tokenizer in `folder`."""
    with tempfile.TemporaryDirectory() as name:
        _expect(Path(name), model, tokenizer)
        command = [sys.executable, "-m", "train.export_gate", str(folder), name]
        alone = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": name}
        gate = subprocess.run(command, capture_output=True, text=True, env=alone, check=False)
    if gate.returncode:
        told = gate.stdout.strip() or gate.stderr.strip()[-2000:]
        raise FormatError(f"transformers does not load the same model, nothing is exported: {told}")


def _expect(directory: Path, model: ArgonneModel, tokenizer: "Tokenizer") -> None:
    """Write what the gate is to find: the model's logits and greedy text, and the ids of some texts."""
    from safetensors.torch import save_file

    vectors = [(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS]
    num_ids, most = tokenizer.get_vocab_size(), model.config.max_position_embeddings
    length, num_prompt = min(64, most), min(16, most // 2)
    words = [number for _, ids in vectors for number in ids]
    told = (words * length)[:length]
    spread = [place * (num_ids - 1) // max(length - 1, 1) for place in range(length)]
    ids = torch.tensor([told, spread])
    prompt = ids[:1, :num_prompt].clone()
    greedy = generate(model, prompt, Sampling(min(NUM_GREEDY, most - num_prompt), temperature=0), num_ids)
    with evaluating(model):
        logits = model(ids).float()
    save_file({"ids": ids, "logits": logits, "prompt": prompt, "greedy": greedy}, directory / TENSORS_NAME)
    document = json.dumps({"vectors": vectors, "end": model.config.eos_token_id})
    (directory / VECTORS_NAME).write_text(document)
