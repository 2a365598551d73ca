"""How far a program is: one line rewritten in place on a terminal, a plain line now and then anywhere else.

A file, a pipe, `docker logs` or the log of a batch job gets no escape codes. Messages come out above the live line.
"""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from shared.terminal import safe_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

INTERVAL_S = 10.0
"""Between plain lines."""
REFRESHES_PER_S = 4
ERASE_LINE = "\r\x1b[2K"


def is_rewritable(stream: TextIO) -> bool:
    """Whether it is a terminal that can go back in its line."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def erase_line(stream: TextIO) -> None:
    """Remove the live line that another process has left on a terminal, if it has."""
    if is_rewritable(stream):
        stream.write(ERASE_LINE)
        stream.flush()


class LiveLine:
    """Shows what `line` says on `stream`, from `start` until `stop`; `line` is told how many columns there are.

    None: as many as it likes. On a terminal a thread asks for it a few times a second, so it must be quick.
    """

    def __init__(self, stream: TextIO, line: Callable[[int | None], str], interval_s: float = INTERVAL_S) -> None:
        self.stream, self.line, self.interval_s = stream, line, interval_s
        self.is_rewritable = is_rewritable(stream)
        self._due_s = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Show it from now on, on a terminal."""
        if self.is_rewritable and self._live is None:
            self._live = _live(self.stream, self.line)
            self._live.start()

    def stop(self, keep: bool = True) -> None:
        """Show it no more; `keep`: leave it as it was last."""
        if self._live is not None:
            self._live.transient = not keep
            self._live.stop()
            self._live = None

    def is_due(self) -> bool:
        """Whether it is time for a plain line: every `interval_s`, and never on a terminal."""
        if self.is_rewritable or time.monotonic() - self._due_s < self.interval_s:
            return False
        self._due_s = time.monotonic()
        return True

    def say(self, text: str, style: str = "") -> None:
        """Print a message that stays; its first word is in a style of rich on a terminal with colors."""
        text, live = safe_text(text), self._live
        if not self.is_rewritable:
            print(text, file=self.stream, flush=True)
            return
        from rich.text import Text

        message = Text(text)
        message.stylize(style, 0, len(text.partition(" ")[0]))
        if live is None:  # the live line may be another process's
            erase_line(self.stream)
        (_terminal(self.stream) if live is None else live.console).print(message, soft_wrap=True)


def _live(stream: TextIO, line: Callable[[int | None], str]) -> "Live":
    """A live display of one line."""
    from rich.live import Live
    from rich.text import Text

    console = _terminal(stream)

    def shown() -> Text:
        return Text(safe_text(line(console.width - 1)), no_wrap=True, overflow="ellipsis")

    return Live(
        get_renderable=shown,
        console=console,
        refresh_per_second=REFRESHES_PER_S,
        redirect_stdout=sys.stdout.isatty(),  # what is meant for a file does not come to the terminal
        redirect_stderr=sys.stderr.isatty(),
    )


def _terminal(stream: TextIO) -> "Console":
    """A terminal, whose colors and NO_COLOR rich sees to."""
    from rich.console import Console

    class Terminal(Console):
        """Its cursor stays to be seen: a process that is killed could not bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            del show
            return False

    return Terminal(file=stream, force_terminal=True, highlight=False)
