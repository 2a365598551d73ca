"""The command line of stage two: `python -m train COMMAND`. What asks a run to stop is heard from here on."""

import os
import sys

from train.signals import Signals

if __name__ == "__main__":
    signals = Signals() if sys.argv[1:2] == ["run"] else None  # before torch, which takes seconds, is imported
    from train.commands import main

    exit_code = main(sys.argv[1:], signals)
    if "RANK" in os.environ:
        from train.collective import leave

        leave(exit_code)
    if signals is not None:
        signals.ignore()  # or one more would take the place of the exit code
    sys.exit(exit_code)
