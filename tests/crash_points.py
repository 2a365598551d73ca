"""A small build and packing, driven through every call of a class with a fault, each time in a process of its own.

The processes are forks of one that has loaded everything and started no thread: a point takes a tenth of a second.
After each fault the same command runs again, and what it leaves must be, byte for byte, what it leaves undisturbed.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tests.faults import CRASHED, Fault, FaultySystem
from tests.helpers import outcome_of
from tests.kills import differences
from tests.throwaway import write_input, write_tokenizer

Job = Callable[[Path], None]
State = dict[str, str]
COMMITS = "index.json"  # whatever stands beside one is finished
SHARD_BYTES = 6000


@dataclass
class Outcome:
    """What became of all points of one fault."""

    points: int = 0
    exit_codes: dict[int, int] = field(default_factory=dict)
    recoveries: int = 0  # from states that differ
    problems: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


class Harness:
    """`job` makes a directory, or what is left of one, into the whole thing; `work` is for the harness alone."""

    def __init__(self, job: Job, work: Path) -> None:
        self.job, self.out, self.aside, self.said = job, work / "out", work / "aside", work / "said"
        code, _ = self._run(None)
        assert code == 0, self.said.read_text()
        self.clean = state_of(self.out)
        self._recovered: dict[str, str | None] = {}

    def every_point(self, kind: str, of: str, times: int = 1, first: int = 1, stride: int = 1) -> Outcome:
        """Each `stride`-th call of a class from `first` on, until the job ends before that."""
        outcome, at = Outcome(), first
        while True:
            shutil.rmtree(self.out, ignore_errors=True)
            fault = Fault(kind, of, at, times)
            code, has_struck = self._run(fault)
            if not has_struck:
                return outcome
            outcome.points += 1
            outcome.exit_codes[code] = outcome.exit_codes.get(code, 0) + 1
            if code == 2:
                outcome.messages.append(self.said.read_text().splitlines()[-1])
            outcome.problems += [f"{fault}: {problem}" for problem in self._problems(code)]
            outcome.recoveries = len(self._recovered)
            at += stride

    def _problems(self, code: int) -> list[str]:
        """What is wrong with what a fault has left."""
        if code not in (0, 2, CRASHED):
            return [f"exit code {code}: {self.said.read_text()}"]
        found = state_of(self.out)
        if code == 0:
            return differences(found, self.clean)
        problems = [
            f"{name} was committed before {other} was whole"
            for name in found
            if Path(name).name == COMMITS
            for other in self.clean
            if Path(other).parent == Path(name).parent and found.get(other) != self.clean[other]
        ]
        key = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        if key not in self._recovered:
            code, _ = self._run(None)
            said = f"exit code {code}: {self.said.read_text()}"
            self._recovered[key] = None if code else ""
            problems += [said] if code else differences(state_of(self.out), self.clean)
        return problems

    def _run(self, fault: Fault | None) -> tuple[int, bool]:
        """Exit code of the job in a process of its own, and whether the fault has struck."""
        shutil.rmtree(self.aside, ignore_errors=True)
        self.aside.mkdir()
        child = os.fork()
        if not child:
            self._live(fault)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return code, code == CRASHED or (self.aside / "struck").exists()

    def _live(self, fault: Fault | None) -> None:
        """The process of one run; it does not return."""
        faulty = FaultySystem(fault, self.aside).install() if fault else None
        code, said = outcome_of(partial(self.job, self.out))
        self.said.write_text(said)
        if faulty and faulty.has_struck:
            (self.aside / "struck").touch()
        os._exit(code)


def state_of(directory: Path) -> State:
    """The files of a directory with their checksums; temporary names without what is random in them."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    names = [re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", str(path.relative_to(directory))) for path in files]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(names, files, strict=True)}


def build_and_pack(data: Path, tokenizer: Path) -> Job:
    """A build with validation split, duplicates dropped, in one process, and a packing of it."""
    import numpy.ma  # noqa: F401 (arrow loads it late, in every fork)

    from preprocess import parity
    from preprocess.build import build
    from preprocess.config import BuildSettings, EngineSettings, Execution, PackSettings, TokenizerSettings
    from preprocess.pack import pack
    from shared.records import Selection

    selection = Selection(validation_share=0.2, drop_duplicates=True)
    settings = BuildSettings(32, "text", SHARD_BYTES, selection=selection)
    execution = Execution(engines=EngineSettings("tokenizers", num_threads=1))
    few_texts = parity.odd_texts()[:20]

    def job(out: Path) -> None:
        parity.odd_texts = lambda *_: few_texts  # a third of the time, and no call to the system; of this fork alone
        build(str(data), out, settings, TokenizerSettings(str(tokenizer)), execution)
        pack(out, PackSettings(32, workers=1))

    return job


def main() -> None:
    """`python -m tests.crash_points WORK KIND:CLASS:TIMES:FIRST:STRIDE ...`: the outcomes by these words, as JSON."""
    work = Path(sys.argv[1])
    write_input(work / "in", rows=30)
    with redirect_stdout(sys.stderr):
        tokenizer = write_tokenizer(work / "tokenizer.json", work / "in")
    harness = Harness(build_and_pack(work / "in", tokenizer), work)
    outcomes = {}
    for asked in sys.argv[2:]:
        kind, of, *numbers = asked.split(":")
        outcomes[asked] = asdict(harness.every_point(kind, of, *map(int, numbers)))
        print(asked, outcomes[asked]["points"], file=sys.stderr, flush=True)
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
