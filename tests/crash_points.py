"""A small build and packing, driven through every call of a class with a fault, each time in a process of its own.

The processes are forks of one that has loaded everything and started no thread: a point takes a tenth of a second.
After each fault the same command runs again, and what it leaves must be, byte for byte, what it leaves undisturbed.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.errors import UserError
from tests.faults import CRASHED, Fault, FaultySystem

Job = Callable[[Path], None]
State = dict[str, str]
COMMITS = "index.json"  # whatever stands beside one is finished


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
            outcome.problems += [f"{fault}: {problem}" for problem in self._problems(code)]
            if code == 2:
                outcome.messages.append(self.said.read_text().splitlines()[-1])
            outcome.recoveries = len(self._recovered)
            at += stride

    def _problems(self, code: int) -> list[str]:
        """What is wrong with what a fault has left."""
        if code not in (0, 2, CRASHED):
            return [f"exit code {code}: {self.said.read_text()}"]
        found = state_of(self.out)
        if code == 0:
            return _differences(found, self.clean)
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
            problems += [said] if code else _differences(state_of(self.out), self.clean)
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
        code, said = 1, io.StringIO()
        faulty = FaultySystem(fault, self.aside).install() if fault else None
        try:
            with redirect_stdout(said), redirect_stderr(said):
                self.job(self.out)
            code = 0
        except UserError as error:
            code = 2
            print(f"error: {error}", file=said)
        except BaseException:
            traceback.print_exc(file=said)
        finally:
            self.said.write_text(said.getvalue())
            if faulty and faulty.has_struck:
                (self.aside / "struck").touch()
            os._exit(code)


def state_of(directory: Path) -> State:
    """The files of a directory with their checksums; temporary names without what is random in them."""
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    names = [re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", str(path.relative_to(directory))) for path in files]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(names, files, strict=True)}


def _differences(found: State, wanted: State) -> list[str]:
    return [f"{name} differs" for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]


def build_and_pack(data: Path, tokenizer: Path) -> Job:
    """A build with validation split, duplicates dropped, in one process, and a packing of it."""
    from preprocess.build import build
    from preprocess.config import BuildSettings, EngineSettings, Execution, PackSettings, TokenizerSettings
    from preprocess.pack import pack
    from shared.records import Selection

    selection = Selection(validation_share=0.2, drop_duplicates=True)
    settings = BuildSettings(32, "text", SHARD_BYTES, selection=selection)
    execution = Execution(engines=EngineSettings("tokenizers", num_threads=1))

    def job(out: Path) -> None:
        build(str(data), out, settings, TokenizerSettings(str(tokenizer)), execution)
        pack(out, PackSettings(32, workers=1))

    return job


SHARD_BYTES = 6000


def main() -> None:
    """`python -m tests.crash_points WORK KIND:CLASS[:TIMES] ...`, with WORK/in and WORK/tokenizer.json, prints JSON."""
    work = Path(sys.argv[1])
    harness = Harness(build_and_pack(work / "in", work / "tokenizer.json"), work)
    outcomes = {}
    for asked in sys.argv[2:]:
        kind, of, *times = asked.split(":")
        outcomes[asked] = asdict(harness.every_point(kind, of, *map(int, times)))
    json.dump({"files": len(harness.clean), **outcomes}, sys.stdout)


if __name__ == "__main__":
    main()
