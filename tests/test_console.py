"""What a run prints: one live line on a terminal, plain lines elsewhere, next to nothing, or JSON for programs."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from shared.command import run_command
from shared.live import ERASE_LINE
from tests.helpers import REPOSITORY, run_cli
from tests.launch_helpers import events
from tests.test_live import COLOR, screen
from tests.test_watchdog import recipe_file
from tests.train_helpers import random_tokens, write_tokens
from train.commands import COMMANDS
from train.console import Output, console, line
from train.metrics import RunLog
from train.outlook import Outlook
from train.records import read_metrics

STEPS = 90
CHANGES = {
    "training__total_steps": STEPS,
    "training__validate_every": 30,
    "checkpoint__every": 45,
    "checkpoint__asynchronous": False,
    "recovery__hang_timeout_s": 60.0,
}
LINE = re.compile(
    rf"step (\d+)/{STEPS}  loss \d\.\d{{4}}(  grad [\d.]+)?(  validation \d\.\d{{4}})?(  lr \S+)?  [\d,]+ tokens/s  "
    r"mfu \d+%  data-wait [\d.]+ ms  left (\d:\d\d:\d\d)  job ends in (\d:\d\d:\d\d)"
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    write_tokens(directory, [random_tokens(40_000)], vocab_size=64)
    return directory


def on_a_terminal(columns: int, *arguments: object) -> tuple[int, str]:
    """The exit code of a command of `train`, and all that its terminal was sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train", *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 1 << 16):
                shown += piece
        except OSError:  # how Linux tells the end of a pseudo-terminal
            os.close(master)
    return process.returncode, shown.decode()


def words(tokens: Path, directory: Path, **changes) -> list[object]:
    path = recipe_file(directory, **CHANGES, **changes)
    return ["run", tokens, directory / "run", "--recipe", path, "--nproc", 1, "--deadline", "2:00:00"]


@pytest.fixture(scope="module")
def shown(tokens, tmp_path_factory):
    """A run on a terminal of 120 columns: its directory, what the terminal was sent, and the rows that are left."""
    directory = tmp_path_factory.mktemp("terminal")
    code, sent = on_a_terminal(120, *words(tokens, directory))
    assert code == 0, sent
    return directory / "run", sent, screen(sent)


@pytest.fixture(scope="module")
def piped(tokens, tmp_path_factory):
    """A run whose output a program reads: its directory and the lines."""
    directory = tmp_path_factory.mktemp("json")
    done = run_cli("train", *words(tokens, directory), "--json", OMP_NUM_THREADS="1", FORCE_COLOR="1", TERM="xterm")
    assert (done.returncode, done.stderr) == (0, "")
    return directory / "run", done.stdout.splitlines()


def test_on_a_terminal_a_run_rewrites_one_line_and_no_message_tears_it(shown):
    run, sent, rows = shown
    assert sent.count(ERASE_LINE) > 5
    assert rows[-1] == ""
    lines = [found for row in rows[:-1] if (found := LINE.fullmatch(row))]
    assert [int(found[1]) for found in lines] == [30, 60, STEPS]
    assert [bool(found[3]) for found in lines] == [True, True, True]
    told = [row for row in rows[:-1] if not LINE.fullmatch(row)]
    happened = [json.loads(text)["event"] for text in (run / "events.jsonl").read_text().splitlines()]
    assert [row.partition(":")[0] for row in told] == happened
    assert rows[-2].startswith(f"finished: step {STEPS}, tokens ")


def test_on_a_terminal_the_live_line_tells_the_time_that_is_left(shown):
    live = [LINE.search(piece) for piece in shown[1].split(ERASE_LINE)]
    ends = {found[6] for found in live if found}
    assert ends
    assert all("1:59:00" <= end <= "2:00:00" for end in ends)
    assert [found[5] for found in live if found][-1] == "0:00:00"


def test_on_a_terminal_what_went_wrong_is_in_color_and_no_more(shown):
    happened = [json.loads(text) for text in (shown[0] / "events.jsonl").read_text().splitlines()]
    wrong = [event["event"] for event in happened if "problem" in event]
    assert "warning" in wrong
    assert re.findall(r"\x1b\[1;33m([a-z-]+):\x1b\[0m ", shown[1]) == wrong
    assert len(COLOR.findall(shown[1])) == len(wrong)


def test_json_is_metrics_and_events_line_by_line_and_nothing_else(piped):
    run, lines = piped
    found = [json.loads(text) for text in lines]
    assert [text for text in lines if "event" not in json.loads(text)] == (
        (run / "metrics.jsonl").read_text().splitlines()
    )
    assert [text for text in lines if "event" in json.loads(text)] == (run / "events.jsonl").read_text().splitlines()
    assert [record["step"] for record in found if "event" not in record] == list(range(1, STEPS + 1))
    assert found[-1]["event"] == "finished"


def test_json_of_a_run_that_has_ended_is_json(tokens, piped, capsys):
    arguments = words(tokens, piped[0].parent)
    assert run_command("train", COMMANDS, [str(word) for word in arguments] + ["--json"]) == 0
    note = json.loads(capsys.readouterr().out)
    assert (note["event"], note["problem"].partition(" finished at ")[2][:8]) == ("note", f"step {STEPS} ")


# in this process

RECORD = {"step": 1, "loss": 2.5, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_s": 1234.5, "step_s": 1.0, "mfu": 0.5}


def told(output: Output, directory: Path) -> None:
    """A short run as the one that writes tells of it."""
    log = RunLog(directory, True, console(output, Outlook(last_step=3)))
    log.event("start", step=0)
    for step in (1, 2, 3):
        log.step(RECORD | {"step": step, "data_wait_s": 0.0}, is_last=step == 3)
    log.event("warning", problem="odd")
    log.event("restart", rank=1, reason="rank 1 was ended by SIGKILL")
    log.event("finished", step=3)
    log.console.note("warning: no room")


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        ("quiet", ["restart", "finished", "warning: no room"]),
        ("lines", ["start", "step 1", "step 3", "warning: odd", "restart", "finished", "warning: no room"]),
    ],
)
def test_a_quiet_run_says_what_fails_and_how_it_ends(tmp_path, capsys, output, wanted):
    told(output, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(wanted)
    for text, start in zip(lines, wanted, strict=True):
        assert text.startswith(start)
    assert len(read_metrics(tmp_path)) == 3
    assert len(events(tmp_path, "warning")) == 1


def test_the_step_that_a_run_was_stopped_after_is_told(tmp_path, capsys):
    log = RunLog(tmp_path, True, console("lines", Outlook(last_step=9)))
    for step in (1, 2, 3):
        log.step(RECORD | {"step": step, "data_wait_s": 0.0}, is_last=False)
    log.event("stopped", step=3)
    log.console.close()
    assert [text.split("  ")[0] for text in capsys.readouterr().out.splitlines()] == [
        *("step 1/9", "step 3/9", "stopped: step 3")
    ]


def test_what_an_event_says_cannot_command_a_terminal(tmp_path, capsys):
    log = RunLog(tmp_path, True, console("lines", Outlook(last_step=3)))
    log.event("spike", problem="\x1b[2Jhot\nrow", documents=["\x9b31m"])
    assert capsys.readouterr().out == "spike: \\x1b[2Jhot\\nrow\n"


def test_quiet_and_json_are_refused_together(tokens, tmp_path, capsys):
    assert run_command("train", COMMANDS, ["run", str(tokens), str(tmp_path / "run"), "--quiet", "--json"]) == 2
    assert capsys.readouterr().err == "error: --quiet and --json are both given: one is wanted\n"


def test_a_narrow_terminal_is_told_what_matters_most():
    record, outlook = RECORD | {"data_wait_s": 0.0123, "validation_loss": 2.25}, Outlook(3, deadline_s=60.0)
    outlook.stepped(record, 0.0)
    full = line(record, outlook, 0.0)
    for columns in range(150):
        short = line(record, outlook, 0.0, columns)
        assert len(short) <= max(columns, len("step 1/3"))
        assert set(short.split("  ")) <= set(full.split("  "))
    assert line(record, outlook, 0.0, 30) == "step 1/3  loss 2.5000"


# time left


def outlook_after(steps, **plan):
    """Each step: seconds of it, of its validation (None: it has none), and of what comes before the next."""
    outlook, now_s, after_s = Outlook(**plan), 0.0, 0.0
    for number, (step_s, validation_s, after_s) in enumerate(steps, 1):
        now_s += step_s + (validation_s or 0.0)
        more = {} if validation_s is None else {"validation_loss": 1.0}
        outlook.stepped({"step": number, "step_s": step_s, **more}, now_s)
        now_s += after_s
    return outlook, now_s - after_s


@pytest.mark.parametrize(
    ("steps", "plan", "left_s"),
    [
        ([], {"last_step": 9}, 0.0),  # nothing known
        ([(60, None, 0)], {"last_step": 3}, 120.0),  # the first step, in which blocks are compiled, is all there is
        ([(60, None, 0), (2, None, 0), (2, None, 0), (50, None, 0)], {"last_step": 14}, 20.0),  # one slow step
        ([(1, None, 0)] * 4, {"last_step": 4}, 0.0),
        ([(1, None, 0), (1, 5, 0), (1, None, 0)], {"last_step": 9, "validate_every": 2}, 6 + 3 * 5),
        ([(1, None, 0), (1, 5, 0)], {"last_step": 9, "validate_every": 2, "is_validated_last": True}, 7 + 4 * 5),
        ([(1, None, 0), (1, None, 7), (1, None, 0)], {"last_step": 6, "save_every": 2}, 3 + 2 * 7),
        ([(1, None, 0), (1, None, 7), (1, None, 0)], {"last_step": 7, "save_every": 2}, 4 + 3 * 7),  # and at the end
        (
            [(1, None, 0), (1, 3, 7), (1, None, 0)],  # a step that is validated, then saved
            {"last_step": 5, "validate_every": 2, "save_every": 2, "is_validated_last": True},
            2 + 2 * 3 + 2 * 7,
        ),
        (
            [(1, None, 7), (1, None, 7), (1, 3, 0)],  # validated right after a save
            {"last_step": 6, "validate_every": 3, "save_every": 1},
            3 + 3 + 3 * 7,
        ),
    ],
)
def test_the_time_left_counts_steps_validations_and_saves(steps, plan, left_s):
    outlook, now_s = outlook_after(steps, **plan)
    assert outlook.left_s(now_s) == left_s
    assert outlook.left_s(now_s + 1.0) == max(left_s - 1.0, 0.0)
