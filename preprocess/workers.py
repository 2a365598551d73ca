"""The shards of a build on several processes, of which any may die at any moment.

Each worker writes one shard at a time and sends back only its description, progress and, if it cannot go on, a line.
The parent waits for their pipes and their deaths together, so that no death goes unnoticed: the shard is tried again in
a new worker, and after the third death set aside, so that the others are written before the build fails. Workers end
with their parent, however it ends.
"""

import os
import pickle
import signal
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Generic, cast

from preprocess.attempts import TRIES, Attempts
from preprocess.job import Done_co, Work
from preprocess.processes import become_worker, interrupts_held, worker_context
from shared.allocator import keep_freed_memory
from shared.claims import Claim, held
from shared.errors import UserError

if TYPE_CHECKING:  # what shows it is not for workers to load
    from preprocess.progress import Progress

GRACE_S = 2.0  # between a worker's last word and its end


def write_on_workers(
    job: Work[Done_co], numbers: Sequence[int], num_workers: int, progress: "Progress"
) -> dict[int, Done_co]:
    """Write the shards on up to `num_workers` processes of one thread each; fewer shards get the threads instead.

    Raises: UserError as soon as a worker tells one, or at the end if a shard killed its worker `TRIES` times.
    """
    pool = _Pool(job, numbers, num_workers, progress)
    try:
        return pool.run()
    finally:
        pool.end()


class _Worker:
    """The parent's end of one process; `number` is the shard it is on, with what it has told of it."""

    def __init__(self, num_threads: int) -> None:
        context = worker_context()
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, num_threads, dict(os.environ), held())
        self.process: BaseProcess = context.Process(target=_serve, args=arguments, daemon=True)
        with interrupts_held():  # or Ctrl-C meets the worker before it has learnt to leave that to its parent
            _start(self.process)
        theirs.close()
        self.is_ready, self.last_words = False, ""
        self.number: int | None = None
        self.text_bytes = self.num_tokens = 0

    def employ(self, job: bytes) -> None:
        """Tell the worker, once, what its job is; waits until it can hear that."""
        with suppress(OSError):  # its death, if that is why, is about to be noticed
            self.pipe.send_bytes(job)

    def give(self, number: int) -> None:
        """Set the worker on shard `number`."""
        self.number, self.text_bytes, self.num_tokens = number, 0, 0
        with suppress(OSError):  # its death, if that is why, is about to be noticed
            self.pipe.send(number)

    def reason(self) -> str:
        """Why the process ended, once it has closed its pipe."""
        self.process.join(GRACE_S)
        self.end()
        code = self.process.exitcode or 0
        return self.last_words or (signal.Signals(-code).name if code < 0 else f"exit code {code}")

    def end(self) -> None:
        """Kill the process if it still runs."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class _Pool(Generic[Done_co]):
    def __init__(self, job: Work[Done_co], numbers: Sequence[int], num_workers: int, progress: "Progress") -> None:
        self._job, self._progress = pickle.dumps(job), progress
        self._num_workers = max(min(num_workers, len(numbers)), 1)
        self._num_threads = num_workers // self._num_workers
        self._attempts = Attempts(job.plan, numbers)
        self._failed_starts = 0
        self._done: dict[int, Done_co] = {}
        self._workers: list[_Worker] = []
        self._said: set[str] = set()

    def run(self) -> dict[int, Done_co]:
        waiting = self._attempts.waiting
        while waiting or self._num_busy():
            self._hire(min(self._num_workers, len(waiting) + self._num_busy()) - len(self._workers))
            ready = wait([end for worker in self._workers for end in (worker.pipe, worker.process.sentinel)])
            for worker in [*self._workers]:
                if worker.pipe in ready or worker.process.sentinel in ready:
                    self._attend(worker)
            for worker in self._workers:
                if worker.is_ready and worker.number is None and waiting:
                    worker.give(waiting.popleft())
        self._attempts.finish()
        return self._done

    def _hire(self, count: int) -> None:
        """Start `count` workers, all of them before any is told its job, which none hears before it has started."""
        new = [_Worker(self._num_threads) for _ in range(count)]
        self._workers += new
        for worker in new:
            worker.employ(self._job)

    def end(self) -> None:
        for worker in self._workers:
            worker.process.kill()  # all of them first
        for worker in self._workers:
            worker.end()

    def _num_busy(self) -> int:
        return sum(worker.number is not None for worker in self._workers)

    def _attend(self, worker: _Worker) -> None:
        """Hear all that `worker` has said; then, if it died, see to its shard."""
        try:
            while worker.pipe.poll():
                self._hear(worker, *worker.pipe.recv())
        except (EOFError, OSError):
            self._bury(worker, worker.reason())
            return
        if not worker.process.is_alive() and not worker.pipe.poll():
            self._bury(worker, worker.reason())

    def _hear(self, worker: _Worker, what: str, *details: object) -> None:
        match what, *details:
            case "ready", None:
                worker.is_ready, self._failed_starts = True, 0
            case "said", str(line):
                if line not in self._said:  # all of them say it
                    print(line, flush=True)
                self._said.add(line)
            case "progress", (int(text_bytes), int(num_tokens)):
                worker.text_bytes += text_bytes
                worker.num_tokens += num_tokens
                self._progress.add(text_bytes, num_tokens)
            case "done", done:
                assert worker.number is not None
                self._done[worker.number] = cast(Done_co, done)
                self._progress.finish_shard()
                worker.number = None
            case "last words", str(words):
                worker.last_words = words
            case "mistake", str(line):
                raise UserError(line)
            case "bug", str(trace):
                raise RuntimeError(f"a worker failed:\n{trace}")
            case _:
                raise AssertionError(f"a worker said {what}")

    def _bury(self, worker: _Worker, reason: str) -> None:
        self._workers.remove(worker)
        number = worker.number
        if number is None:
            self._failed_starts += not worker.is_ready
            if self._failed_starts == TRIES:
                raise UserError(
                    f"{TRIES} workers in a row ended before their first shard ({reason}): free some memory or give "
                    "fewer --workers, then run again: it continues"
                )
            return
        self._progress.add(-worker.text_bytes, -worker.num_tokens)
        self._attempts.died(number, reason)


def _start(process: BaseProcess) -> None:
    """Start the process; if what it is forked from has died, that is started again.

    Raises: UserError if that dies each time.
    """
    for _ in range(TRIES):
        with suppress(EOFError, ConnectionError):
            process.start()
            return
    raise UserError(f"no worker could be started in {TRIES} tries: free some memory, then run again: it continues")


def _serve(pipe: Connection, num_threads: int, environment: dict[str, str], claims: Sequence[Claim]) -> None:
    """A worker's life: hear its job, write the shards whose numbers come, say how it goes."""
    become_worker(claims)
    keep_freed_memory()
    os.environ.update(environment)  # what it was forked from may have started long before
    with suppress(BrokenPipeError):  # the parent has gone
        try:
            job: Work[Any] = pickle.loads(pipe.recv_bytes())  # from its parent
            write = job.open(num_threads, lambda line: pipe.send(("said", line)))
            pipe.send(("ready", None))
            while True:
                number = pipe.recv()
                pipe.send(("done", write(number, lambda *counts: pipe.send(("progress", counts)))))
        except EOFError:
            return
        except UserError as error:
            pipe.send(("mistake", str(error)))
        except MemoryError:
            pipe.send(("last words", "out of memory"))  # as good as killed: the shard is tried again
        except Exception:
            pipe.send(("bug", traceback.format_exc()))
