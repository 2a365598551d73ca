"""The command line of `preprocess`: text -> token dataset. `python -m preprocess --help` lists the commands.

It loads next to nothing itself, so that what workers need is being loaded in another process meanwhile.
"""

import os
import sys
from collections.abc import Sequence

from preprocess.processes import prepare_workers

ON_WORKERS = ("tokenize", "duplicates")
NO_WORKERS = ("-h", "--help", "--ray")


def main(argv: Sequence[str]) -> int:
    """Exit code of the command line `argv`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # nothing here uses numpy's threads, which spin when they start
    if argv[:1] and argv[0] in ON_WORKERS and not any(option.startswith(NO_WORKERS) for option in argv):
        prepare_workers()
    from preprocess.commands import COMMANDS
    from shared.command import run_command

    return run_command("preprocess", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
