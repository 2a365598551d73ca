"""Two ranks that train, save and resume, disturbed at every call of a class or killed at any time, and looked at after.

The ranks are forks of one process that has loaded everything and started no thread; they find a checkpoint of step 1.
What is looked at: every directory with a checkpoint's name is one, byte for byte that of an undisturbed run; no step
that was told to be saved is lost; the same ranks, started again, load exactly the newest and end as undisturbed.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # each rank would load it otherwise, which takes a second
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from shared.cursor import Cursor
from shared.errors import UserError
from shared.storage import read_sealed
from tests.faults import CRASHED, Fault, FaultySystem
from train.checkpoint import Checkpoints, Progress
from train.checkpoint_directory import MANIFEST_NAME, checkpoints, damage, step_of
from train.tensors import training_tensors

RANKS, STEPS = 2, 3
IDENTITY = {
    "recipe": {"training": {"seed": 1}, "data": {"sequence_length": 16}},
    "dataset": "d",
    "packing": None,
    "tokenizer": "t",
}
HUNG_AFTER_S = 60.0
HUNG = 99


@dataclass
class Outcome:
    """What became of all points of one fault."""

    points: int = 0
    exit_codes: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    recoveries: int = 0
    problems: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


class Harness:
    """`work` is for the harness alone."""

    def __init__(self, work: Path, asynchronous: bool) -> None:
        self.out, self.first, self.notes, self.asynchronous = work / "out", work / "first", work / "notes", asynchronous
        assert self._run(last=1) == [0] * RANKS, self._told()
        shutil.copytree(self.out, self.first)
        assert self._run(keep=STEPS) == [0] * RANKS, self._told()
        self.whole = {path.name: read_sealed(path / MANIFEST_NAME)["files"] for path in checkpoints(self.out)}
        assert len(self.whole) == STEPS, self._told()
        self._start_over()
        began_s = time.monotonic()
        assert self._run() == [0] * RANKS
        self.clean_s = time.monotonic() - began_s
        self.end = self._told()[0]["end"]
        self._recovered: set[str] = set()

    def every_point(self, fault: Fault, rank: int, stride: int = 1) -> Outcome:
        """Each `stride`-th call of a class on one rank from the fault's on, until the rank ends before that."""
        outcome, at = Outcome(), fault.at
        while True:
            struck = Fault(fault.kind, fault.of, at, fault.times)
            if not self._disturb(outcome, f"{struck} on rank {rank}", partial(self._run, struck, rank)):
                return outcome
            at += stride

    def kills(self, times: int) -> Outcome:
        """All ranks killed at once, at any moment."""
        outcome, delays = Outcome(), random.Random(times)
        for _ in range(times):
            delay_s = delays.uniform(0.0, self.clean_s)
            self._disturb(outcome, f"killed after {delay_s:.3f} s", partial(self._run, kill_after_s=delay_s))
        return outcome

    def _disturb(self, outcome: Outcome, what: str, run: Callable[[], list[int]]) -> bool:
        """Run, look, run again; whether there was a disturbance."""
        self._start_over()
        codes = run()
        told = self._told()
        is_killed = CRASHED in codes or -signal.SIGKILL in codes
        if not is_killed and not any(rank.get("has_struck") for rank in told):
            outcome.problems += [f"{what}: {problem}" for problem in self._differences(codes)]
            return False
        outcome.points += 1
        _count(outcome.exit_codes, str(codes))
        for event in (event for rank in told for event in rank.get("events", [])):
            _count(outcome.events, event)
        outcome.messages += [told[0]["failure"]] if "failure" in told[0] and not is_killed else []
        problems = [] if is_killed or codes in ([0] * RANKS, [2] * RANKS) else [f"exit codes {codes}: {told}"]
        problems += self._problems() + (self._differences(codes) if codes == [0] * RANKS else [])
        key = _state(self.out)
        if key not in self._recovered:
            self._recovered.add(key)
            problems += self._problems_of_another_start()
        outcome.recoveries = len(self._recovered)
        outcome.problems += [f"{what}: {problem}" for problem in problems]
        return True

    def _start_over(self) -> None:
        shutil.rmtree(self.out)
        shutil.copytree(self.first, self.out)

    def _problems(self) -> list[str]:
        """What is wrong with what is there, looked at by a process that was not part of it."""
        problems = []
        for path in checkpoints(self.out):
            if damage(path) is not None:
                problems.append(f"{path.name} is not whole: {damage(path)}")
            elif read_sealed(path / MANIFEST_NAME)["files"] != self.whole[path.name]:
                problems.append(f"{path.name} holds something else than it should")
        steps = [step_of(path) for path in checkpoints(self.out)]
        saved = self.notes / "saved"
        promised = max(map(int, saved.read_text().split())) if saved.exists() else 1
        return problems + [f"step {promised} was saved, and is lost"] * (max(steps, default=0) < promised)

    def _problems_of_another_start(self) -> list[str]:
        steps = [step_of(path) for path in checkpoints(self.out)]
        codes = self._run()
        loaded = [rank.get("loaded") for rank in self._told()]
        wrong = [f"loaded {loaded} of {steps}"] if loaded != [max(steps, default=0)] * RANKS else []
        return wrong + self._problems() + self._differences(codes)

    def _differences(self, codes: list[int]) -> list[str]:
        """From an undisturbed end."""
        told = self._told()
        if codes != [0] * RANKS or any(rank["end"] != self.end for rank in told):
            return [f"ended with {codes} otherwise than undisturbed: {told}"]
        last = f"step-{STEPS:08d}"
        return [] if (self.out / last).exists() else [f"{last} is not there"]

    def _told(self) -> list[dict[str, Any]]:
        """What each rank has said at its end."""
        paths = [self.notes / f"rank-{rank}" for rank in range(RANKS)]
        return [json.loads(path.read_text()) if path.exists() else {} for path in paths]

    def _run(
        self,
        fault: Fault | None = None,
        faulty_rank: int = 0,
        kill_after_s: float = HUNG_AFTER_S,
        keep: int = 1,
        last: int = STEPS,
    ) -> list[int]:
        """Exit codes of the ranks, each a process of its own."""
        shutil.rmtree(self.notes, ignore_errors=True)
        (self.notes / "aside").mkdir(parents=True)
        children = []
        for rank in range(RANKS):
            child = os.fork()
            if not child:
                self._live(rank, fault if rank == faulty_rank else None, keep, last)
            children.append(child)
        end_s, codes = time.monotonic() + kill_after_s, dict[int, int]()
        while len(codes) < RANKS:
            for child in children:
                if child not in codes and (status := os.waitpid(child, os.WNOHANG))[0]:
                    codes[child] = os.waitstatus_to_exitcode(status[1])
            if time.monotonic() >= end_s:
                for child in set(children) - codes.keys():
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    codes[child] = HUNG if kill_after_s == HUNG_AFTER_S else -signal.SIGKILL
            time.sleep(0.001)
        return [codes[child] for child in children]

    def _live(self, rank: int, fault: Fault | None, keep: int, last: int) -> None:
        """The process of one rank; it does not return."""
        code, said = 1, dict[str, Any](events=[])
        faulty = FaultySystem(fault, self.notes / "aside").install() if fault else None
        try:
            store = dist.FileStore(str(self.notes / "store"), RANKS)
            limit = timedelta(seconds=HUNG_AFTER_S / 2)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=limit)
            self._train(rank, said, keep, last)
            code = 0
        except UserError as error:
            code, said["failure"] = 2, str(error)
        except BaseException:
            said["failure"] = traceback.format_exc()
        finally:
            said["has_struck"] = bool(faulty and faulty.has_struck)
            written = self.notes / f"rank-{rank}.tmp"
            written.write_text(json.dumps(said))
            written.rename(self.notes / f"rank-{rank}")  # whole or absent, as a kill may come here too
            os._exit(code)

    def _train(self, rank: int, said: dict[str, Any], keep: int, last: int) -> None:
        """From the newest checkpoint to step `last`, saving each."""

        def report(name: str, **details: Any) -> None:
            said["events"].append(name)
            if name == "save":
                with (self.notes / "saved").open("a") as file:
                    file.write(f"{details['step']}\n")

        kept = Checkpoints(self.out, keep, IDENTITY, asynchronous=self.asynchronous, report=report)
        model, optimizer = _parts(rank)
        path = kept.recover()
        progress = kept.load(path, model, optimizer) if path else Progress(0, Cursor(0, 0, 0), 0, "")
        said["loaded"] = progress.step
        while progress.step < last:
            _one_step(model, optimizer, progress.step)
            kept.check()
            progress = Progress(progress.step + 1, Cursor(0, 0, progress.step), 0, "")
            kept.save(model, optimizer, progress)
        kept.finish(model, optimizer, progress)
        kept.close()
        said["end"] = _digests(model, optimizer)


def _parts(rank: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model of which one parameter is spread over the ranks and one is on each, and its optimizer."""
    mesh, model = init_device_mesh("cpu", (RANKS,)), nn.Module()
    model.spread = nn.Parameter(DTensor.from_local(torch.full((32, 16), rank + 1.0), mesh, [Shard(0)]))
    model.everywhere = nn.Parameter(torch.ones(8))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)


def _one_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) + (step + 1.0) * parameter.detach()
    optimizer.step()


def _digests(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of all tensors of each rank."""
    mine = hashlib.sha256()
    for tensor in training_tensors(model, optimizer).values():
        mine.update((tensor.to_local() if isinstance(tensor, DTensor) else tensor).numpy().tobytes())
    digests: list[str | None] = [None] * RANKS
    dist.all_gather_object(digests, mine.hexdigest())
    return digests  # type: ignore[return-value]


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _state(directory: Path) -> str:
    """Of the files there; what is unfinished counts for its size."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return repr([(path.name, path.parent.name[:13], path.stat().st_size) for path in files])


def main() -> None:
    """`python -m tests.saving_points WORK MODE ASKED ...`, where one is KIND:CLASS:TIMES:STRIDE:RANK or kills:N."""
    work, mode, *asked = sys.argv[1:]
    torch.set_num_threads(1)
    harness, outcomes = Harness(Path(work), mode == "asynchronous"), {}
    for text in asked:
        kind, of, *numbers = text.split(":")
        if kind == "kills":
            outcome = harness.kills(int(of))
        else:
            times, stride, rank = map(int, numbers)
            outcome = harness.every_point(Fault(kind, of, 1, times), rank, stride)
        outcomes[text] = asdict(outcome)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
