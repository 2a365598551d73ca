"""What `plan` says a rank needs against what real ranks take: `python -m tests.benchmarks.planning`.

Two processes train a few steps of each recipe under either strategy. What a rank takes is the most of its memory that
was in use at once (VmHWM) beyond what it had after some steps of a model of a thousand weights under the same strategy:
so what libraries take for themselves is counted apart. The allocator gives freed memory back at once here, so that
what is in use is what tensors take; a run keeps it, for speed, which is the last column. `--device cuda` does the same
in one process on a GPU, by `torch.cuda.max_memory_allocated`. `--only PART` takes what has that in its name,
`--microbatch N` does it in that.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from shared.allocator import keep_freed_memory
from shared.config import structure, unstructure
from train.collective import gather, leave
from train.config import RunConfig, load_recipe
from train.counting import Allocated
from train.data import Batch
from train.layout import lay_out
from train.optim import build_optimizer, create_state
from train.peak import stage_peaks
from train.run import LARGEST_KEPT_BYTES
from train.strategy import build_strategy

STEPS = 2
GIVEN_BACK = 128 << 10
"""Pieces from so many bytes on go back to the system when they are freed: glibc's own default."""
MIB = 1 << 20
TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@dataclass(frozen=True)
class Taken:
    """By one rank, in bytes."""

    libraries: int
    """Beyond what it had after its imports and with a process group."""
    model: int
    tensors: int
    """That were alive at once, counted operation by operation; 0 where that was not done."""


def recipes(device: str) -> dict[str, RunConfig]:
    """What is measured, by name: three sizes and shapes, in the microbatch that each says."""
    if device == "cuda":
        return {"125m": _changed("125m", {}, {}, {"microbatch": 8, "compile": False})}
    large = {"vocab_size": 50_304, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8}
    return {
        "tiny": _changed("tiny", {"vocab_size": 16_384}, {}, {}),
        "125m, 4 layers, length 512": _changed(
            "125m",
            {"vocab_size": 32_768, "num_hidden_layers": 4},
            {"sequence_length": 512, "global_batch": 8},
            {"microbatch": 2, "precision": "fp32", "compile": False, "activation_checkpointing": "selective"},
        ),
        "50,304 ids, untied, length 1,024": _changed(
            "tiny",
            {**large, "num_key_value_heads": 4, "intermediate_size": 704, "tie_word_embeddings": False},
            {"sequence_length": 1024, "global_batch": 8},
            {"microbatch": 2},
        ),
    }


def _changed(name: str, model: dict, data: dict, training: dict) -> RunConfig:
    tables = unstructure(load_recipe(name))
    for section, changes in (("model", model), ("data", data), ("training", training)):
        tables[section] |= changes
    tables["pipeline"]["split"] = "computed"  # as a plan has it
    return structure(tables, RunConfig, name)


def measure(
    config: RunConfig, num_ranks: int, device: str, kept_bytes: int, *, is_counted: bool = False
) -> list[Taken]:
    """What each of so many real ranks takes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = json.dumps({"config": unstructure(config), "device": device, "kept": kept_bytes, "counted": is_counted})
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.planning", job],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), said
    return [Taken(**json.loads(words.splitlines()[-1])) for words in said]


def work(job: dict) -> None:
    """Be one of the ranks."""
    keep_freed_memory(job["kept"])
    torch.set_num_threads(1)
    config, device = structure(job["config"], RunConfig, "job"), torch.device(job["device"])
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    imported = _used(device)
    small = {**unstructure(config.model), **TINY, "num_key_value_heads": None}
    tables = unstructure(config) | {"model": small, "data": {"sequence_length": 16, "global_batch": 8}}
    tables["training"] |= {"microbatch": 1}
    _train(structure(tables, RunConfig, "small"), device)
    _forget_peak(device)
    before = _used(device)
    counted = Allocated()
    if job["counted"]:
        with counted:
            _train(config, device)
    else:
        _train(config, device)
    taken = Taken(before - imported, _peak(device) - before, counted.peak)
    gather(None)  # all have their figures
    print(json.dumps(vars(taken)))
    dist.destroy_process_group()
    leave(0)


def _train(config: RunConfig, device: torch.device) -> None:
    """As a run does it, from no weights to the last of a few steps."""
    layout = lay_out(config, dist.get_world_size())
    strategy = build_strategy(config, layout, device)
    optimizer = build_optimizer(config.optimizer, strategy.model)
    create_state(optimizer)
    shape = config.data.global_batch // layout.dp_size, config.data.sequence_length
    generator = torch.Generator().manual_seed(strategy.dp_rank)
    inputs, targets = (torch.randint(0, config.model.vocab, shape, generator=generator).to(device) for _ in range(2))
    batch = Batch(inputs, targets, inputs.numel() * layout.dp_size, np.empty((0, 0), np.uint8))
    for _ in range(STEPS):
        strategy.forward_backward(batch)
        strategy.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()


def _used(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def rows(device: str, only: str, microbatch: int | None) -> Iterator[tuple[str, ...]]:
    """Cells of the table, a line for each recipe, strategy and stage."""
    for name, recipe in recipes(device).items():
        for strategy in ("fsdp",) if device == "cuda" else ("fsdp", "pipeline"):
            if only not in f"{name}, {strategy}":
                continue
            config = replace(recipe, strategy=strategy)
            if microbatch is not None:
                config = config.with_microbatch(microbatch)
            yield from _rows(name, config, 1 if device == "cuda" else 2, device)


def _rows(name: str, config: RunConfig, num_ranks: int, device: str) -> Iterator[tuple[str, ...]]:
    planned = stage_peaks(config, lay_out(config, num_ranks), device)
    taken = measure(config, num_ranks, device, GIVEN_BACK)
    is_cpu = device == "cpu"
    counted = measure(config, num_ranks, device, GIVEN_BACK, is_counted=True) if is_cpu else taken
    as_run = measure(config, num_ranks, device, LARGEST_KEPT_BYTES) if is_cpu else taken
    for stage, held in enumerate(planned):
        rank = stage if config.strategy == "pipeline" else 0
        what = f"{name}, {config.strategy}" + (f", stage {stage}" if len(planned) > 1 else "")
        found = taken[rank].model
        sizes = held.total, found, counted[rank].tensors, as_run[rank].model, taken[rank].libraries
        yield (what, f"{held.total / found:.2f}", *(f"{size / MIB:,.0f}" for size in sizes))


def main(arguments: list[str]) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="part of a recipe's name and strategy")
    parser.add_argument("--microbatch", type=int)
    options = parser.parse_args(arguments)
    names = "ratio", "planned, MiB", "taken", "tensors", "taken as a run", "libraries"
    table = Table("recipe", *names, title=f"memory of a rank at its peak, {options.device}")
    for row in rows(options.device, options.only, options.microbatch):
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        work(json.loads(sys.argv[1]))
    else:
        main(sys.argv[1:])
