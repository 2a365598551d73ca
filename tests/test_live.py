"""One live line on a terminal, plain lines anywhere else."""

import io
import os
import pty
import re
import time
from contextlib import contextmanager

import pytest

from shared.live import ERASE_LINE, LiveLine, erase_line, is_rewritable

COLOR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


class Terminal:
    """Both ends of a pseudo-terminal."""

    def __init__(self):
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.stream = os.fdopen(slave, "w")

    def shown(self):
        """What has come to it since it was last asked."""
        said = b""
        try:
            while piece := os.read(self._master, 1 << 16):
                said += piece
        except BlockingIOError:
            return said.decode()

    def close(self):
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    one = Terminal()
    yield one
    one.close()


@contextmanager
def showing(terminal, line):
    live = LiveLine(terminal.stream, line)
    live.start()
    yield live
    live.stop()


def screen(shown):
    """The rows of a terminal, without colors, after all that it was sent; it is wide and has room for every row."""
    rows, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", shown):
        if piece == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif piece == "\r":
            column = 0
        elif piece == "\x1b[2K":
            rows[row] = ""
        elif piece == "\x1b[1A":
            row -= 1
        elif piece.startswith("\x1b"):
            assert piece.endswith("m"), piece  # a color; the cursor, for one, is never hidden
        else:
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + 1 :]
            column += 1
    return rows


def test_a_terminal_has_one_line_that_is_rewritten_and_messages_above_it(terminal):
    count = iter(range(10_000))
    with showing(terminal, lambda _: f"line {next(count)}") as live:
        time.sleep(1.2)
        live.say("save: done")
        time.sleep(0.6)
    shown = terminal.shown()
    assert 5 <= shown.count(ERASE_LINE) <= 12
    rows = screen(shown)
    assert rows[0] == "save: done"
    assert re.fullmatch(r"line \d+", rows[1])
    assert rows[2:] == [""]


def test_a_terminal_is_never_due_and_a_line_need_not_stay(terminal):
    live = LiveLine(terminal.stream, lambda _: "line", interval_s=0.0)
    live.start()
    time.sleep(0.4)
    assert not live.is_due()
    live.stop(keep=False)
    live.say("said")
    shown = terminal.shown()
    assert "line" in shown
    assert screen(shown) == ["said", ""]


def test_a_line_that_is_too_long_stays_one(terminal):
    with showing(terminal, lambda _: "x" * 500):
        time.sleep(0.4)
    assert [len(row) for row in screen(terminal.shown())] == [80, 0]


def test_a_message_of_another_process_takes_the_place_of_the_live_line(terminal):
    with showing(terminal, lambda _: "line"):
        time.sleep(0.4)
        other = LiveLine(terminal.stream, lambda _: "")
        other.say("eager: rank 1")
        time.sleep(0.4)
    assert screen(terminal.shown()) == ["eager: rank 1", "line", ""]


@pytest.mark.parametrize("is_live", [True, False])
@pytest.mark.parametrize("no_color", [None, "1"])
def test_colors_are_for_those_who_want_them(terminal, monkeypatch, no_color, is_live):
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    live = LiveLine(terminal.stream, lambda _: "line")
    if is_live:
        live.start()
    live.say("warning: \x1b[31mhot", "bold yellow")
    live.stop()
    shown = terminal.shown()
    assert bool(COLOR.search(shown)) == (no_color is None)
    assert r"\x1b[31mhot" in screen(shown)[0]


@pytest.mark.parametrize("kind", ["dumb", "file"])
def test_what_cannot_rewrite_a_line_gets_plain_lines_when_they_are_due(terminal, monkeypatch, kind):
    if kind == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setenv("FORCE_COLOR", "1")
    stream = terminal.stream if kind == "dumb" else io.StringIO()
    assert not is_rewritable(stream)
    live = LiveLine(stream, lambda _: "line", interval_s=0.3)
    with live:
        assert not live.is_due()
        live.say("save: done", "bold yellow")
        erase_line(stream)
        time.sleep(0.35)
        assert live.is_due()
        assert not live.is_due()
    shown = terminal.shown().replace("\r\n", "\n") if kind == "dumb" else stream.getvalue()
    assert shown == "save: done\n"
