"""The README.md of an exported model: what it was trained on, how, and how well, from what the run wrote down."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.directories import exists
from shared.storage import SEAL, read_sealed
from shared.terminal import safe_text
from train.chain import Link
from train.loss_plot import PLOT_NAME
from train.model import ArgonneModel
from train.recorded import Recorded
from train.run_files import IMPORTED_NAME

MOST_ROWS = 12
HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- argonne
- {tag}
---
"""
OWN_CODE = (
    "An Argonne 1.x: `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` runs modeling_argonne.py of "
    "this folder. As in 1.x nobody shifts labels: they are the ids that come next."
)


def model_card(
    run: Path,
    recorded: Recorded | None,
    links: Sequence[Link],
    manifest: Mapping[str, Any],
    model: ArgonneModel,
    kind: str,
    num_ids: int,
    files: Mapping[str, str],
) -> str:
    """Markdown; `recorded` and `links` are what the run wrote down, if it was started; `manifest` is of the checkpoint
    that is exported, `files` the sha256 of each file beside this one.
    """
    name = safe_text(run.resolve().name)
    is_old = model.config.architecture == "argonne-1"
    said = [*_about(manifest, model, kind, num_ids), *([OWN_CODE] if is_old else [])]
    if exists(run / IMPORTED_NAME):
        source = Path(read_sealed(run / IMPORTED_NAME)["source"]).name
        said.append(f"Begun from {_plain(safe_text(source))}.")
    hashes = [(link.what, link.hash) for link in links if link.hash]
    hashes += [("exported checkpoint", manifest[SEAL]), ("data read up to it", manifest["data_digest"] or "none")]
    sections = [
        f"{HEAD.format(tag='custom_code' if is_old else 'llama')}\n# {_plain(name)}",
        "\n\n".join(said),
        "## Losses\n\n" + (_losses(recorded, manifest["step"]) if recorded else "It has not been trained on since."),
        *([f"![losses against tokens]({PLOT_NAME})"] if PLOT_NAME in files else []),
        "## Hashes\n\n" + _table(("what", "sha256 or digest"), [(what, f"`{_plain(h)}`") for what, h in hashes]),
        "## Files\n\n" + _table(("file", "sha256"), [(file, f"`{digest}`") for file, digest in files.items()]),
        "## Recipe\n\n```json\n" + json.dumps(manifest["recipe"], indent=2) + "\n```",  # JSON has no line of fences
    ]
    return "\n\n".join(sections) + "\n"


def _about(manifest: Mapping[str, Any], model: ArgonneModel, kind: str, num_ids: int) -> Iterator[str]:
    """Paragraphs of what anybody who uses it has to know."""
    config, size = model.config, sum(parameter.numel() for parameter in model.parameters())
    end = f"ends with id {config.eos_token_id}" if config.eos_token_id is not None else "has no end that was told"
    yield (
        f"{size:,} parameters, {manifest['step']:,} steps, {manifest['tokens']:,} tokens, saved as "
        f"{kind}. Positions up to {config.max_position_embeddings:,}. A document {end}; no token is put before a text."
    )
    if num_ids < config.vocab:
        yield (
            f"The last {config.vocab - num_ids} rows of the embedding fill it up: no text has their ids, and "
            "generation_config.json keeps them from being chosen."
        )
    yield "A base model: it continues text, and was not taught to follow instructions or to be harmless."


def _losses(recorded: Recorded, step: int) -> str:
    """The loss at some steps up to `step`, evenly spread, with the last; and each validation loss that is there."""
    steps = recorded.columns["step"]
    there = np.flatnonzero(steps <= step)
    if not len(there):
        return "The run has no record of them."
    chosen = there[np.unique(np.linspace(0, len(there) - 1, MOST_ROWS).astype(int))]
    validated = there[~np.isnan(recorded.columns["validation_loss"][there])][-MOST_ROWS:]
    columns = ("step", "tokens", "loss", "validation_loss")
    rows = [[_shown(recorded.columns[name][row]) for name in columns] for row in np.union1d(chosen, validated)]
    return _table([name.replace("_", " ") for name in columns], rows)


def _shown(value: float) -> str:
    return "" if np.isnan(value) else f"{value:,.0f}" if value == int(value) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    r"""`text` without a meaning in Markdown or HTML.

    >>> _plain("a_b <b>|")
    'a\\_b &lt;b&gt;\\|'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#!" else char for char in text)
