"""What a save costs the loop, waiting for it or not, against a bare copy of the same tensors to host memory.

`python -m tests.benchmarks.saving` prints a table; the sides take turns in one process.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from shared.cursor import Cursor
from tests.train_helpers import group_of_one, some_ids
from train.architecture import ArgonneConfig
from train.checkpoint import Checkpoints, Progress
from train.checkpoint_save import HostCopies
from train.config import OptimizerConfig
from train.loss import token_loss
from train.model import ArgonneModel
from train.optim import build_optimizer
from train.tensors import training_tensors

SHAPE = ArgonneConfig(
    vocab_size=16_384,
    hidden_size=512,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    intermediate_size=1408,
    max_position_embeddings=512,
)
IDENTITY = {"recipe": {"training": {"seed": 0}}, "dataset": "", "packing": None, "tokenizer": ""}
ROUNDS = 3


def main() -> None:
    """Print what was measured."""
    torch.set_num_threads(2)
    model = ArgonneModel(SHAPE)
    model.initialize(0)
    optimizer = build_optimizer(OptimizerConfig(learning_rate=1e-4), model)

    def step() -> float:
        began = time.perf_counter()
        token_loss(model(some_ids(1, 256)), some_ids(1, 256, seed=1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began

    alone = [step() for _ in range(6)][2:]
    with tempfile.TemporaryDirectory() as name, group_of_one():
        stalls, saves, beside = _turns(Path(name), model, optimizer, step)
    tensors = training_tensors(model, optimizer)
    print(f"{sum(tensor.nbytes for tensor in tensors.values()) / 1e6:,.0f} MB of weights and optimizer state")
    for side, seconds in stalls.items():
        print(f"{side:<28}{median(seconds):7.3f} s   {median(seconds) / median(stalls['bare copy']):6.2f} x the copy")
    print(f"{'a save in the background':<28}{median(saves):7.3f} s from begin to end")
    print(f"{'a step meanwhile':<28}{median(beside):7.3f} s   {median(beside) / median(alone):6.2f} x a step alone")


def _turns(directory: Path, model: ArgonneModel, optimizer: torch.optim.Optimizer, step):
    """Seconds that each side held the loop up; that saves in the background took; of steps meanwhile."""
    told: list[dict] = []
    sides = {
        "saved, waited for": Checkpoints(directory / "waiting", 1, IDENTITY),
        "saved in the background": Checkpoints(
            directory / "background",
            1,
            IDENTITY,
            asynchronous=True,
            report=lambda name, **details: told.append(details),
        ),
    }
    bare, beside = HostCopies(), list[float]()
    stalls: dict[str, list[float]] = {name: [] for name in ("bare copy", *sides)}
    for number in range(1, ROUNDS + 2):  # the first takes the memory
        began = time.perf_counter()
        bare.take(training_tensors(model, optimizer))
        stalls["bare copy"].append(time.perf_counter() - began)
        for name, checkpoints in sides.items():
            began = time.perf_counter()
            checkpoints.save(model, optimizer, Progress(number, Cursor(0, 0, 0), 0, ""))
            stall_s, seen = time.perf_counter() - began, len(told)
            while name.endswith("background") and len(told) == seen:
                beside.append(step())
                began = time.perf_counter()
                checkpoints.check()
                stall_s += time.perf_counter() - began
            stalls[name].append(stall_s)
    for checkpoints in sides.values():
        checkpoints.close()
    return {name: seconds[1:] for name, seconds in stalls.items()}, [details["save_s"] for details in told[1:]], beside


if __name__ == "__main__":
    main()
