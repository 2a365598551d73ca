"""`train run` whose ranks have a fault in them: `faulty_launch PLACE FAULT RANK STEP` and its arguments."""

import os
import subprocess
import sys

from train.signals import Signals


def main(fault: list[str], arguments: list[str], signals: Signals) -> int:
    import train.ranks
    from train.commands import run

    def start(arguments, environment):
        command = [sys.executable, "-m", "tests.faulty_rank", *fault, *arguments]
        return subprocess.Popen(command, env=os.environ | environment, start_new_session=True)

    train.ranks._start = start
    return run(arguments, signals)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:5], sys.argv[5:], Signals()))
