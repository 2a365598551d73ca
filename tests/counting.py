"""Work that a chain of jobs carries to its end, in milliseconds: counts in a file, and fails where it is told to.

`counting.py slice begin|end CHAIN TARGET --job J [--code N]`, or `counting.py work TARGET PLAN...`, where PLAN says of
each start how far it counts and how it goes then: `12` ends saved; `12!` is killed; `12x` fails; `12m` is a mistake;
`12~` waits until it is told to stop, and saves; `12^` waits for SIGKILL; `12.` is finished.
"""

import json
import os
import signal
import sys
import time
from argparse import ArgumentParser
from fcntl import LOCK_EX, flock
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from shared.slices import Chain

CODES = {"": 75, "x": 1, ".": 0, "m": 2}
HOW = {75: "saved", 1: "failed", 0: "finished", 2: "mistake"}


def slice_of_work() -> int:
    parser = ArgumentParser()
    for name in ("what", "chain", "target"):
        parser.add_argument(name)
    parser.add_argument("--job")
    parser.add_argument("--code", type=int)
    asked = parser.parse_args(sys.argv[2:])
    if (Path(asked.target).with_name("broken")).exists():
        return 1
    chain, at = Chain(Path(asked.chain), "count"), json.loads(Path(asked.target).read_text())["count"]
    if asked.what == "begin":
        return chain.begin(asked.job, at, time.time())
    return chain.end(asked.job, at, HOW.get(asked.code, "died"), f"code {asked.code}", time.time())


def work(target: Path, plan: list[str]) -> int:
    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    with target.open("r+") as file:
        flock(file, LOCK_EX)  # nodes of one job count together
        state = json.load(file)
        mine, state["starts"] = plan[state["starts"]], state["starts"] + 1
        number, how = int(mine.rstrip("!x~.m^")), mine.lstrip("0123456789")
        state["count"] = max(state["count"], number)
        target.write_text(json.dumps(state))
    if how == "!":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "~" and not told:
        time.sleep(0.01)
    while how == "^":  # nothing but SIGKILL ends it
        time.sleep(0.01)
    for number in (signal.SIGUSR1, signal.SIGTERM):  # Python would have them kill it while it shuts down
        signal.signal(number, signal.SIG_IGN)
    return CODES.get(how, 75)


if __name__ == "__main__":
    sys.exit(slice_of_work() if sys.argv[1] == "slice" else work(Path(sys.argv[2]), sys.argv[3:]))
