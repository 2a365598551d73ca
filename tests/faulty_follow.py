"""`train.follow` with trackers that no package is needed for: one that writes a file, and some with faults."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from train.follow import follow
from train.trackers import TRACKERS


class Written:
    """Writes what it is told to RUN/<its name>.jsonl; cannot forget."""

    can_rewind = False

    def __init__(self, run, identity, recipe):
        self.path = run / f"{type(self).__name__.lower()}.jsonl"
        self._write({"start": identity})

    def rewind(self, step):
        self._write({"rewind": step})
        return self.can_rewind

    def log(self, step, values):
        self._write({"step": step, **values})

    def close(self):
        self._write({"close": True})

    def _write(self, what):
        with open(self.path, "a") as file:
            file.write(json.dumps(what) + "\n")


class Forgetful(Written):
    can_rewind = True


class Raising(Written):
    def log(self, step, values):
        if step == 3:
            raise ConnectionError("\x1b[2Jno network")


class Killed(Written):
    def log(self, step, values):
        os.kill(os.getpid(), signal.SIGBUS)


class Hanging(Written):
    def log(self, step, values):
        if step == 3:
            time.sleep(1000)


class Closing(Written):
    def close(self):
        sys.exit(3)


KINDS = {
    "written": Written,
    "forgetful": Forgetful,
    "raising": Raising,
    "killed": Killed,
    "hanging": Hanging,
    "closing": Closing,
}
if __name__ == "__main__":
    TRACKERS.update(KINDS)
    follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
