"""A process of its own that loads an exported folder as a stranger would, with `transformers` alone, and compares.

    python -m train.export_gate FOLDER EXPECTED    prints what is wrong, a line each; exit code 1 if anything is

EXPECTED holds what the model gave before: expected.safetensors (ids, logits, prompt, greedy) and vectors.json (texts
and their ids, and the end-of-document id).
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

TENSORS_NAME, VECTORS_NAME = "expected.safetensors", "vectors.json"
TOLERANCE = 1e-4
"""Of a logit, in fp32."""


def problems(folder: Path, expected: Path) -> Iterator[str]:
    """What of the folder is not as it was in the run."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    told = json.loads((expected / VECTORS_NAME).read_text())
    tensors = load_file(expected / TENSORS_NAME)
    remote = "auto_map" in json.loads((folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote)
    for text, ids in told["vectors"]:
        if (found := tokenizer(text).input_ids) != ids:
            yield f"the tokenizer gives {found[:12]} for {text!r}, the run's gives {ids[:12]}"
    if (found := tokenizer.eos_token_id) != told["end"]:
        yield f"the tokenizer's end of text is id {found}, a document of the run ends with {told['end']}"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=remote).eval()
    with torch.no_grad():
        off = (model(tensors["ids"]).logits - tensors["logits"]).abs().max().item()
    if not off <= TOLERANCE:
        yield f"a logit is off by {off:.3g}, at most {TOLERANCE:g} is wanted"
    prompt, greedy = tensors["prompt"], tensors["greedy"]
    found = _generated(model, prompt, greedy.shape[1] - prompt.shape[1])
    if not torch.equal(found, greedy):
        yield f"greedy text is {found[0].tolist()}, the run's model gives {greedy[0].tolist()}"
    if told["end"] is not None:
        yield from _stopping(model, prompt, told["end"])


def _stopping(model: Any, prompt: torch.Tensor, end: int) -> Iterator[str]:
    """Whether a text ends where the model says that its document ends: it is made to say so as its second word."""
    length = prompt.shape[1]
    others = [number for number in range(model.config.vocab_size) if number != end]

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return [end] if len(ids) == length + 1 else others

    found = _generated(model, prompt, 8, prefix_allowed_tokens_fn=allowed)
    if found.shape[1] != length + 2:
        yield f"generation went on for {found.shape[1] - length - 2} tokens after the end of a document (id {end})"


def _generated(model: Any, prompt: torch.Tensor, num_new: int, **how: Any) -> torch.Tensor:
    mask = torch.ones_like(prompt)
    found: torch.Tensor = model.generate(prompt, attention_mask=mask, max_new_tokens=num_new, do_sample=False, **how)
    return found


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
    wrong = list(problems(Path(sys.argv[1]), Path(sys.argv[2])))
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)
