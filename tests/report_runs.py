"""Runs written by hand, for the tests of what is told of them."""

import json
from pathlib import Path
from typing import Any

from shared.storage import write_sealed

BEGAN = 1_700_000_000.0


def step(number: int, **changes: Any) -> dict[str, Any]:
    """A step of a second, of which a tenth is spent waiting for data."""
    usual = {"loss": 5.0, "grad_norm": 1.0, "tokens": 100 * number, "step_s": 1.0, "data_wait_s": 0.1}
    rates = {"lr": 1e-3, "lr_matrices": 1e-3, "lr_embeddings": 1e-3, "lr_vectors": 1e-3}
    return {"step": number, **usual, **rates, "tokens_per_s": 100.0, "mfu": 0.5, "data_digest": f"d{number}", **changes}


def steps(first: int, last: int) -> list[dict[str, Any]]:
    return [step(number) for number in range(first, last + 1)]


def event(at: float, name: str, **details: Any) -> dict[str, Any]:
    return {"time": BEGAN + at, "event": name, **details}


def start(at: float, after: int = 0, *, undone: int = 0, setup_s: float = 5.0, **more: Any) -> dict[str, Any]:
    """Ready at `at`; it does again `undone` steps that took a second each."""
    told = {"layout": "fsdp over 2 ranks", "host": "node1", "ranks": 2, "setup_s": setup_s, **more}
    return event(at, "start", step=after, **told, undone=undone, undone_s=float(undone))


def write_run(
    run: Path,
    records: list[Any],
    events: list[Any],
    recipe: dict[str, Any] | None = None,
    identity: dict[str, Any] | None = None,
    **state,
) -> Path:
    """A run's directory with these lines; a string is a line as it is. `identity` is what is beside the recipe."""
    run.mkdir(parents=True, exist_ok=True)
    for name, lines in (("metrics.jsonl", records), ("events.jsonl", events)):
        (run / name).write_text("".join(x if isinstance(x, str) else json.dumps(x) + "\n" for x in lines))
    plain = {"recipe": recipe or {}, "dataset": "d" * 64, "tokenizer": "t" * 64, "packing": None}
    write_sealed(run / "run.json", {"identity": plain | (identity or {}), "total_steps": 100, "versions": {}})
    if state:
        write_sealed(run / "state.json", state)
    return run
