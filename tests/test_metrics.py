import json
import re
import resource

import pytest
import torch

from shared.errors import StorageError
from train.console import console
from train.metrics import RunLog, measured_peak_flops
from train.outlook import Outlook
from train.records import read_metrics

RECORD = {"loss": 2.5, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_s": 1234.5, "step_s": 90.0, "mfu": 0.5}


def record(step, **more):
    return {"step": step, **RECORD, "data_wait_s": 0.0123, **more}


def log_of(directory, is_writer=True):
    return RunLog(directory, is_writer, console("lines", Outlook(last_step=100)))


def written(directory, steps):
    log = log_of(directory)
    for step in steps:
        log.step(record(step), is_last=False)
    return log


def steps(directory):
    return [found["step"] for found in read_metrics(directory)]


@pytest.mark.parametrize(
    ("step", "kept"),
    [(0, []), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])],
)
def test_rewinding_drops_the_steps_that_will_run_again(tmp_path, step, kept):
    written(tmp_path, range(1, 6)).rewind(step)
    assert steps(tmp_path) == kept


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}', ""])
def test_a_line_that_a_kill_cut_short_is_not_read_and_dropped(tmp_path, torn):
    log = written(tmp_path, [1, 2])
    with open(log.metrics_path, "a") as file:
        file.write(torn)
    assert steps(tmp_path) == [1, 2]
    log.rewind(9)
    log.step(record(3), is_last=False)
    assert steps(tmp_path) == [1, 2, 3]


def test_each_step_stands_once_however_often_a_run_is_killed(tmp_path):
    for start, reached in [(0, 4), (2, 7), (6, 6), (5, 9)]:
        log_of(tmp_path).rewind(start)
        written(tmp_path, range(start + 1, reached + 1))
    assert steps(tmp_path) == list(range(1, 10))


def test_the_last_records_are_told_by_the_rank_that_writes_them(tmp_path):
    assert log_of(tmp_path).recent(2) == []
    written(tmp_path, range(1, 5))
    assert [found["step"] for found in log_of(tmp_path).recent(2)] == [3, 4]
    assert log_of(tmp_path, is_writer=False).recent(2) == []


def test_the_line_of_a_skipped_step_says_so(tmp_path, capsys):
    log_of(tmp_path).step(record(3) | {"loss": None, "grad_norm": None}, is_last=True)
    assert capsys.readouterr().out.startswith("step 3/100  skipped  lr ")


def test_rewinding_keeps_the_lines_byte_for_byte(tmp_path):
    log = written(tmp_path, range(1, 6))
    lines = log.metrics_path.read_bytes().splitlines(keepends=True)
    log.rewind(3)
    assert log.metrics_path.read_bytes() == b"".join(lines[:3])


def test_rewinding_a_run_without_metrics_does_nothing(tmp_path):
    log_of(tmp_path).rewind(3)
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_is_not_the_writer_writes_and_prints_nothing(tmp_path, capsys):
    written(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    log = log_of(tmp_path, is_writer=False)
    log.step(record(3), is_last=True)
    log.event("save", step=3)
    log.rewind(0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert capsys.readouterr() == ("", "")


def test_a_line_for_people_has_the_numbers_of_the_step(tmp_path, capsys):
    log_of(tmp_path).step(record(60), is_last=True)
    line = (
        "step 60/100  loss 2.5000  grad 1.000  lr 1.00e-03  1,234 tokens/s  mfu 50%  data-wait 12.3 ms  left 1:00:00\n"
    )
    assert capsys.readouterr().out == line


def test_a_validated_step_is_told_at_once_and_others_once_an_interval(tmp_path, capsys):
    log = log_of(tmp_path)
    for step in range(1, 5):
        log.step(record(step), is_last=False)
    log.step(record(5, validation_loss=2.25), is_last=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/100", "5/100"]
    assert "loss 2.5000  grad 1.000  validation 2.2500  lr" in lines[1]


def test_an_event_is_a_line_of_json_and_a_line_for_people(tmp_path, capsys):
    log_of(tmp_path).event("save", step=3, path="x")
    found = json.loads((tmp_path / "events.jsonl").read_text())
    assert found.pop("time") > 0
    assert found == {"event": "save", "step": 3, "path": "x"}
    assert capsys.readouterr().out == "save: step 3, path x\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_measured_peak_is_that_of_a_machine(dtype):
    assert 1e8 < measured_peak_flops(torch.device("cpu"), dtype) < 1e16


def test_lines_that_find_no_room_wait_and_stand_once_in_order_when_there_is_some(tmp_path, capsys):
    log = written(tmp_path, range(1, 4))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.metrics_path.stat().st_size + 10, hard))
    try:
        for step in range(4, 8):
            log.step(record(step), is_last=False)
        assert steps(tmp_path) == [1, 2, 3]
        assert [found["step"] for found in log.recent(5)] == [3, 4, 5, 6, 7]
        with pytest.raises(StorageError, match=r"metrics\.jsonl cannot be written \(File too large"):
            log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert re.search(
        r"metrics\.jsonl cannot be written .*; the run goes on, and its lines wait in memory$", warnings[0]
    )
    log.rewind(6)
    log.step(record(7, loss=9.0), is_last=True)
    assert steps(tmp_path) == list(range(1, 8))
    assert read_metrics(tmp_path)[-1]["loss"] == 9.0
