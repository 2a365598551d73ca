"""What both command lines share: commands by name, typed options, one line and exit code 2 for a mistake."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from shared.errors import UserError

Command = Callable[[Sequence[str]], int | None]


def run_command(program: str, commands: Mapping[str, Command], argv: Sequence[str]) -> int:
    """Exit code of the command named first in `argv`, run with the rest of it.

    0 = done, 2 = a mistake the user can mend (printed as one line), 130 = interrupted, 141 = nobody reads the output.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(_usage(program, commands))
        return 0
    if name not in commands:
        print(f"error: unknown command {name!r}: one of {', '.join(commands)} is wanted", file=sys.stderr)
        return 2
    try:
        code = commands[name](rest) or 0
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _usage(program: str, commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    summaries = {name: (command.__doc__ or "").partition("\n")[0] for name, command in commands.items()}
    lines = [f"  {name:<{width}}  {summary}".rstrip() for name, summary in summaries.items()]
    return "\n".join([f"usage: python -m {program} COMMAND [--help]", "", *lines])
