"""`make chaos`: the faults of tests on the user's own storage, against a build and a run that are thrown away.

It needs nothing but the repository: the text is drawn, the tokenizer trained on it, the model has a few thousand
weights. What comes out must be, byte for byte, what comes out undisturbed.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from preprocess.verify import verify
from tests.crash_points import Harness, build_and_pack, state_of
from tests.damage import cut, damage_files, flipped, seen_by
from tests.kills import Result, build_command, differences, kill_at_random, saved, train_command, trained
from tests.oracle import problems_of
from tests.throwaway import write_input, write_tokenizer

LENGTH = 32
FAULTS = {
    "a call ends the process": "exit:changes:1",
    "half of a write": "half:changes:1",
    "power lost": "power:changes:1",
    "power lost, names kept": "names:changes:1",
    "disk full from a call on": "ENOSPC:changes:1000",
    "a call fails for good": "EIO:changes:1",
    "stale handles, 3 in a row": "ESTALE:looks:3",
    "errors of reading, 4 in a row": "EIO:looks:4",
}
NUM_CALLS = 300


class Chaos:
    """`work` is an empty directory; `kills` says how often what is done, and `seed` when and where."""

    def __init__(self, work: Path, kills: int, seed: int) -> None:
        self.work, self.kills, self.seed = work, kills, seed
        self.data = write_input(work / "in", rows=30)
        self.tokenizer = write_tokenizer(work / "tokenizer.json", self.data)
        self.job = build_and_pack(self.data, self.tokenizer)

    def faults(self) -> list[Result]:
        """A build and a packing, with each fault at calls here and there."""
        harness = Harness(self.job, self.work)
        stride = min(max(NUM_CALLS * len(FAULTS) // self.kills, 1), NUM_CALLS)
        results = []
        for number, (name, fault) in enumerate(FAULTS.items()):
            kind, of, times = fault.split(":")
            first = 1 + (self.seed + number * stride // len(FAULTS)) % stride
            outcome = harness.every_point(kind, of, int(times), first, stride)
            results.append(Result(f"build: {name}", outcome.points, outcome.problems, "the bytes of a clean build"))
        return results

    def bits(self) -> list[Result]:
        """Files of a dataset with one bit flipped, and cut short."""
        tokens = self.work / "harmed"
        assert seen_by(partial(self.job, tokens))[0] == 0
        look = partial(verify, tokens)
        return [
            damage_files("dataset: a bit flipped", tokens, look, 10 * self.kills, flipped, self.seed),
            damage_files("dataset: a file cut", tokens, look, 2 * self.kills, cut, self.seed),
        ]

    def builds(self) -> list[Result]:
        """A build and a packing by several processes, all killed."""
        out = self.work / "built"
        undisturbed: list[dict[str, str]] = []

        def problems() -> list[str]:
            state = state_of(out)
            undisturbed[:] = undisturbed or [state]
            return problems_of(out, self.data, self.tokenizer, LENGTH) + differences(state, undisturbed[0])

        start, begin = partial(build_command, self.data, self.tokenizer, out, LENGTH), partial(shutil.rmtree, out)
        return [kill_at_random("build: all processes killed", start, begin, problems, self.kills, self.seed)]

    def runs(self) -> list[Result]:
        """A training run of two ranks, all killed; one whose newest checkpoint is harmed."""
        tokens, run = self.work / "tokens", self.work / "run"
        code, said = build_command(self.data, self.tokenizer, tokens, LENGTH).finish()
        assert code == 0, said
        undisturbed: list[dict[str, str]] = []

        def problems() -> list[str]:
            state = trained(run)
            undisturbed[:] = undisturbed or [state]
            return differences(state, undisturbed[0])

        start, begin = partial(train_command, tokens, run), partial(shutil.rmtree, run)
        killed = kill_at_random("run: all processes killed", start, begin, problems, self.kills, self.seed)
        return [killed, self._harmed_checkpoints(tokens, run, undisturbed[0])]

    def _harmed_checkpoints(self, tokens: Path, run: Path, undisturbed: dict[str, str]) -> Result:
        result = Result("run: newest checkpoint harmed", notes="named; the one before used")
        code, said = train_command(tokens, run, "--stop-step", 12).finish()
        assert code == 0, said
        stopped = shutil.copytree(run, self.work / "stopped")
        for number, harm in enumerate([flipped, cut] * max(self.kills // 20, 1)):
            shutil.rmtree(run)
            shutil.copytree(stopped, run)
            result.tries += 1
            result.problems += self._continue_harmed(tokens, run, harm, number, undisturbed)
        return result

    def _continue_harmed(
        self, tokens: Path, run: Path, harm: Callable, number: int, undisturbed: dict[str, str]
    ) -> list[str]:
        """What is wrong after a file of the newest checkpoint was harmed for good and the run went on."""
        files = sorted(saved(run)[-1].iterdir())
        path = files[number % len(files)]
        with harm(path, random.Random(self.seed + number)) as told:
            contents = path.read_bytes()
        path.write_bytes(contents)
        code, said = train_command(tokens, run).finish()
        problems = differences(trained(run), undisturbed) if not code else [f"exit code {code}: {said[-1000:]}"]
        if "is not used" not in said or path.name not in said:
            problems.append("nobody was told")
        return [f"{path}: {told}: {problem}" for problem in problems]


def show(results: list[Result]) -> None:
    """A table of what was done, how often, and how often something was wrong."""
    width = max(len(result.name) for result in results)
    print(f"\n{'fault':<{width}}  {'tries':>6}  {'wrong':>6}  {'s':>6}  what was looked at")
    for result in results:
        numbers = f"{result.tries:>6,}  {len(result.problems):>6,}  {result.seconds:>6,.0f}"
        print(f"{result.name:<{width}}  {numbers}  {result.notes}")
    for problem in [problem for result in results for problem in result.problems][:20]:
        print(f"\nWRONG: {problem}")


def main() -> int:
    """Exit code 0, 1 if anything was lost, changed or passed over in silence, 2 if it is asked for wrongly."""
    parts = ("faults", "bits", "builds", "runs")  # the first two fork, which what the others load would not bear
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=Path(), help="the storage to try: a directory is made in it")
    parser.add_argument("--kills", type=int, default=50, help="kills of each kind; 10 times as many flipped bits")
    parser.add_argument("--seed", type=int, default=0, help="another one kills at other moments")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="a part of it")
    parser.add_argument("--json", type=Path, help="write the results there")
    asked = parser.parse_args()
    if not asked.data_dir.is_dir():
        parser.error(f"--data-dir {asked.data_dir} is no directory: name one that is there, on the storage to try")
    if asked.kills < 1:
        parser.error(f"--kills is {asked.kills}: at least 1 is wanted")
    work = Path(mkdtemp(prefix="argonne-chaos-", dir=asked.data_dir)).absolute()
    chaos, results = Chaos(work, asked.kills, asked.seed), []
    for part in (part for part in parts if part in asked.only):
        began_s = time.monotonic()
        found = getattr(chaos, part)()
        for result in found:
            result.seconds = (time.monotonic() - began_s) / len(found)
        results += found
    show(results)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(result) for result in results]))
    if any(result.problems for result in results):
        print(f"\nsomething is wrong: {work} has what was left")
        return 1
    shutil.rmtree(work)
    print("\nnothing was lost, repeated, mixed or passed over in silence")
    return 0


if __name__ == "__main__":
    sys.exit(main())
