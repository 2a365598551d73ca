"""Loggers get each step once, and whatever becomes of them, the run goes on: real processes, real faults."""

import json
import re
import time
from pathlib import Path

import pytest
import torch

from shared.errors import ConfigError
from shared.storage import write_sealed
from tests.launch_helpers import events
from tests.test_console import RECORD
from tests.train_helpers import group_of_one, random_tokens, recipe, unasked, write_tokens
from train import loggers
from train.console import console
from train.follow import Follower
from train.loggers import Loggers, check_loggers
from train.metrics import RunLog
from train.outlook import Outlook
from train.preflight import prepare
from train.records import read_metrics
from train.request import RunRequest
from train.run import execute
from train.run_files import RUN_NAME


class Run:
    """A run of so many steps as its files are written, with loggers that follow it."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.directory, self.names = directory, names
        write_sealed(directory / RUN_NAME, {"identity": {"recipe": {}}})

    def train(self, start: int, last: int, complete: bool = False, rollback: int | None = None) -> float:
        """Start at `start` and go to `last`, from where `rollback` goes back once; the longest that a step took."""
        log = RunLog(self.directory, True, console("json", Outlook(last)))
        log.rewind(start)
        with Loggers(log, self.names, start, module="tests.faulty_follow") as log.on_rewind:
            if complete:
                log.complete({"validation_loss": 7.0})
            longest_s = self._steps(log, start, last)
            if rollback is not None:
                time.sleep(1.5)  # what is taken back has been given meanwhile
                log.rewind(rollback)
                self._steps(log, rollback, last)
        return longest_s

    def _steps(self, log: RunLog, start: int, last: int) -> float:
        longest_s = 0.0
        for step in range(start + 1, last + 1):
            began = time.monotonic()
            log.step(RECORD | {"step": step, "data_wait_s": 0.0, "data_digest": "ab"}, is_last=step == last)
            longest_s = max(longest_s, time.monotonic() - began)
        return longest_s

    def told(self) -> list[dict]:
        """What the last of its loggers wrote that it was told."""
        return [json.loads(text) for text in (self.directory / f"{self.names[-1]}.jsonl").read_text().splitlines()]

    def steps(self) -> list[int]:
        return [found["step"] for found in self.told() if "step" in found]


def test_a_logger_that_cannot_forget_gets_each_step_once_however_often_the_run_is_killed(tmp_path):
    run = Run(tmp_path, "written")
    run.train(0, 5)
    run.train(3, 8)
    run.train(8, 9, complete=True)
    told = run.told()
    assert run.steps() == [*range(1, 9), 8, 9]
    assert [found for found in told if found.get("step") == 8][1] == {"step": 8, "validation_loss": 7.0}
    assert {found["start"] for found in told if "start" in found} == {told[0]["start"]}
    assert sum("close" in found for found in told) == 3
    assert told[2] == {"step": 1, **{name: value for name, value in RECORD.items() if name != "step"}, "data_wait_s": 0}


def test_a_logger_that_can_forget_forgets_what_is_done_again(tmp_path):
    run = Run(tmp_path, "forgetful")
    run.train(0, 5)
    run.train(3, 6, rollback=2)
    kept: dict[int, int] = {}
    for number, found in enumerate(run.told()):
        if "rewind" in found:
            kept = {step: place for step, place in kept.items() if step < found["rewind"]}
        elif "step" in found:
            assert found["step"] not in kept
            kept[found["step"]] = number
    assert list(kept) == [1, 2, 3, 4, 5, 6]
    assert len(run.steps()) > 10


def test_a_logger_that_is_asked_for_late_gets_what_was_before(tmp_path):
    Run(tmp_path).train(0, 4)
    run = Run(tmp_path, "written")
    run.train(4, 6)
    assert run.steps() == [1, 2, 3, 4, 5, 6]


def test_a_logger_that_fails_is_told_of_once_and_the_others_go_on(tmp_path):
    run = Run(tmp_path, "raising", "killed", "closing", "written")
    run.train(0, 6)
    assert len(read_metrics(tmp_path)) == 6
    assert run.steps() == [1, 2, 3, 4, 5, 6]
    problems = {event["logger"]: event["problem"] for event in events(tmp_path, "logger")}
    assert len(events(tmp_path, "logger")) == 3
    end = rf"the run goes on without it, see {re.escape(str(tmp_path))}/loggers"
    assert re.fullmatch(
        rf"raising ended with exit code 1 \(ConnectionError: .*no network\): {end}/raising.log", problems["raising"]
    )
    assert re.fullmatch(rf"killed was ended by SIGBUS \(it said nothing\): {end}/killed.log", problems["killed"])
    assert re.fullmatch(rf"closing ended with exit code 3 \(it said nothing\): {end}/closing.log", problems["closing"])


def test_a_logger_that_hangs_is_not_waited_for_and_gets_the_rest_at_the_next_start(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "FLUSH_S", 4.0)
    run = Run(tmp_path, "hanging")
    began = time.monotonic()
    assert run.train(0, 2000) < 1.0
    assert time.monotonic() - began < 60.0
    (event,) = events(tmp_path, "logger")
    assert event["problem"] == "hanging did not get its last 1997 steps in 4 s: it gets them at the next start"
    run.train(2000, 2001)
    assert len(events(tmp_path, "logger")) == 1
    assert (tmp_path / "loggers" / "hanging").read_text().split()[0] == "2001"


def test_a_line_that_is_not_whole_is_read_when_it_is(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert list(follower.new()) == []
    path.write_text('{"step": 1}\n{"ste')
    assert list(follower.new()) == [{"step": 1}]
    with path.open("a") as file:
        file.write('p": 2}\n')
    assert list(follower.new()) == [{"step": 2}]
    other = tmp_path / "other"
    other.write_text('{"step": 1}\n{"step": 3}\n')
    other.rename(path)
    assert list(follower.new()) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("is_directory", [False, True])
def test_a_logger_whose_package_is_missing_is_one_line(tmp_path, monkeypatch, is_directory):
    monkeypatch.syspath_prepend(str(tmp_path))
    if is_directory:  # as W&B makes one in the directory where it is used
        (tmp_path / "nowhere").mkdir()
    message = "^loggers: nowhere is not installed: pip install 'argonne\\[nowhere\\]', or leave it out$"
    with pytest.raises(ConfigError, match=message):
        check_loggers(("nowhere",))


# the real packages, where they are installed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs in this process with a real logger: its directory after two starts, of which the second redoes no step."""
    directory = tmp_path_factory.mktemp("real")
    write_tokens(directory / "tokens", [random_tokens(400)], vocab_size=64)

    def train(name):
        pytest.importorskip(name)
        run = directory / name
        with group_of_one():
            for stop_step in (2, None):
                request = RunRequest(directory / "tokens", run, recipe(), stop_step, loggers=(name,))
                execute(prepare(request, 1), torch.device("cpu"), unasked())
        assert events(run, "logger") == []
        return run, {record["step"]: record["loss"] for record in read_metrics(run)}

    return train


def test_tensorboard_has_each_step_once(trained):
    run, losses = trained("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {event.step: event.value for event in found.Scalars("loss")} == pytest.approx(losses)
    assert len(found.Scalars("loss")) == len(losses) == 4
    assert {"lr", "grad_norm", "tokens_per_s", "mfu", "data_wait_s", "tokens"} <= set(found.Tags()["scalars"])


def test_wandb_has_each_step_once_in_one_run_without_a_network(trained, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    run, losses = trained("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[int, float] = {}
    identities = set()
    for path in sorted((run / "wandb").glob("offline-run-*/run-*.wandb")):
        for data in log_records(path.read_bytes()[7:]):
            record = Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                identities.add(record.run.run_id)
            if record.HasField("history"):
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                assert row["_step"] not in found
                found[row["_step"]] = row["loss"]
    assert found == pytest.approx(losses)
    assert len(identities) == 1


def log_records(data: bytes) -> list[bytes]:
    """Of LevelDB's log format, in which W&B writes; its first block is short of the 7 bytes of W&B's header."""
    records, at, end = [b""], 0, 32768 - 7
    while at + 7 < len(data):
        if end - at < 7:
            at, end = end, end + 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        records[-1] += data[at + 7 : at + 7 + size]
        if kind in (1, 4):  # whole, or its last piece
            records.append(b"")
        at += 7 + size
        if at >= end:
            end += 32768
    return records[:-1]


def test_trackio_has_each_step_once_in_one_run(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    _, losses = trained("trackio")
    import sqlite3

    (path,) = tmp_path.glob("argonne*.db")
    rows = sqlite3.connect(path).execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert {step: json.loads(values)["loss"] for _, step, values in rows} == pytest.approx(losses)
    assert len(rows) == len(losses)
