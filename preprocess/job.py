"""All that a process needs to write any shard of a build: plain data that crosses to a worker, opened once there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from preprocess.config import EngineSettings
from preprocess.plan import Plan
from preprocess.processes import collection_held
from preprocess.sources import BadFileError
from shared.format import Shard

if TYPE_CHECKING:
    from preprocess.progress import Progress

Report = Callable[[int, int], None]  # bytes of text and tokens since the last call
Write = Callable[[int, Report], Shard]
Say = Callable[[str], None]
Done_co = TypeVar("Done_co", covariant=True)


def silent(_: str) -> None:
    """Say nothing: a worker's parent has said it."""


class Work(Protocol[Done_co]):
    """Something to be done with each shard of `plan`, as plain data that crosses to a worker and is opened there."""

    @property
    def directory(self) -> Path:
        """Where the results go."""

    @property
    def root(self) -> Path:
        """Where the inputs are."""

    @property
    def plan(self) -> Plan:
        """The shards, by number."""

    def absolute(self) -> "Work[Done_co]":
        """The same with paths that mean the same in another process and on another machine."""

    def open(self, num_threads: int | None = None, say: Say = silent) -> Callable[[int, Report], Done_co]:
        """A function that does it with one shard and returns what is to be known of that."""


@dataclass(frozen=True)
class Job:
    """Writes shards of `plan` from the inputs under `root` to `directory` with the tokenizer.json `tokenizer`.

    `engines` says how; the bytes are the same in any case. `duplicates` is the directory with the list of the rows that
    are dropped because they repeat others, if they are.
    """

    directory: Path
    root: Path
    plan: Plan
    tokenizer: bytes
    engines: EngineSettings
    duplicates: Path | None = None

    def absolute(self) -> "Job":
        """See Work."""
        duplicates = None if self.duplicates is None else self.duplicates.absolute()
        return replace(self, directory=self.directory.absolute(), root=self.root.absolute(), duplicates=duplicates)

    def open(self, num_threads: int | None = None, say: Say = silent) -> Write:
        """A function that writes one shard by its number; `say` is told which engine encodes and which are not used.

        It raises: UserError for whatever the user can mend.
        """
        from preprocess.choose import Engines  # here, so that a worker sets its number of threads before
        from preprocess.duplicates import Duplicates
        from preprocess.select import Selector
        from preprocess.skip import write_skipped
        from preprocess.tokenizer import load_again
        from preprocess.writer import write_shard

        settings = self.engines if num_threads is None else replace(self.engines, num_threads=num_threads)
        with collection_held():
            engines = Engines(load_again(self.tokenizer, self.plan.tokenizer), settings, say=say)
            engines.announce()
        duplicates = None if self.duplicates is None else Duplicates(self.duplicates, self.plan)

        def write(number: int, report: Report) -> Shard:
            source = self.plan.shards[number].source
            selector = Selector(self.plan.build.selection, duplicates.of(source) if duplicates else None)
            try:
                return write_shard(
                    self.directory, self.root, self.plan, number, engines=engines, selector=selector, report=report
                )
            except BadFileError:
                reason = self._reason_to_skip(number)
                if reason is None:
                    raise
            return write_skipped(self.directory, self.plan, number, reason)

        return write

    def _reason_to_skip(self, number: int) -> str | None:
        """Why the source of shard `number` is to be left out: its first damage, if such files may be left out."""
        if self.plan.build.on_bad_file == "stop":
            return None
        from preprocess.select import columns_read
        from preprocess.skip import first_problem

        path = self.root / self.plan.sources[self.plan.shards[number].source].path
        others = columns_read(self.plan.build.selection, self.engines.token_counts)
        return first_problem(path, self.plan.build.text_column, others)


def write_here(job: Work[Done_co], numbers: Iterable[int], progress: "Progress") -> dict[int, Done_co]:
    """Write the shards in this process, one after the other, with all threads that the engine takes."""
    write, shards = job.open(say=print), dict[int, Done_co]()
    for number in numbers:
        shards[number] = write(number, progress.add)
        progress.finish_shard()
    return shards
