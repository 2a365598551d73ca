"""Where a rank is can be read from its file, by anybody and at any time; how long it may be silent is learned."""

import math
import socket
import time

import pytest

from shared.errors import FormatError
from train.heartbeat import HEARTBEATS_NAME, Heartbeat, path_of, read_heartbeat, read_heartbeats
from train.patience import COMPUTE, ENDED, FETCH, OPTIMIZE, PHASES, SAVE, SETUP, SILENCE, VALIDATE, Patience
from train.status import status
from train.watchdog import MARK_NAME


@pytest.fixture
def heartbeats(tmp_path):
    directory = tmp_path / "run" / HEARTBEATS_NAME
    directory.mkdir(parents=True)
    return directory


def heartbeat(directory, rank=0, hang_timeout_s=60.0):
    return Heartbeat(directory, rank, Patience(hang_timeout_s))


@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_is_where_its_file_says(heartbeats, phase):
    beating = heartbeat(heartbeats, 3)
    beating.own_work = 0.5, 0.01
    beating.beat(7, phase)
    beating.pulse(4, 1.5, waits=True)
    record = read_heartbeat(heartbeats, 3)
    assert (record.beats, record.step, record.phase, record.own_s, record.spread_s) == (1, 7, phase, 0.5, 0.01)
    assert (record.ticks, record.silent_s, record.waits, record.host) == (4, 1.5, True, socket.gethostname())
    assert abs(record.time - time.time()) < 5
    assert read_heartbeats(heartbeats) == [record]


def test_a_beat_takes_less_than_20_microseconds(heartbeats):
    beating, batches = heartbeat(heartbeats), []
    for step in range(20):
        began = time.perf_counter()
        for _ in range(100):
            beating.beat(step, COMPUTE)
        batches.append((time.perf_counter() - began) / 100)
    assert min(batches) < 20e-6


@pytest.mark.parametrize("content", [None, b"", b"short"])
def test_a_rank_without_a_whole_file_has_never_ticked(heartbeats, content):
    if content is not None:
        path_of(heartbeats, 0).write_bytes(content)
    record = read_heartbeat(heartbeats, 0)
    assert (record.ticks, record.beats, record.phase) == (-1, 0, SETUP)


def test_the_status_of_a_run_tells_ranks_that_run_are_hung_dead_and_at_the_end_apart(heartbeats, monkeypatch):
    now = time.time()
    for rank, (silent_s, age_s, phase) in enumerate([(1, 0, COMPUTE), (2000, 0, FETCH), (1, 40, SAVE), (1, 40, ENDED)]):
        monkeypatch.setattr(time, "time", lambda age_s=age_s: now - age_s)
        beating = heartbeat(heartbeats, rank)
        beating.beat(12, phase)
        beating.pulse(1, silent_s, waits=False)
    monkeypatch.setattr(time, "time", lambda: now)
    (heartbeats / MARK_NAME).write_text("rank 1 does not get on\n")
    lines = status(heartbeats.parent).splitlines()
    assert [line.split("s  ")[-1] for line in lines[1:5]] == ["runs", "hung", "dead or stopped for 40 s", "ended"]
    assert [line.split()[3:5] for line in lines[1:5]] == [["12", phase] for phase in (COMPUTE, FETCH, SAVE, ENDED)]
    assert lines[5:] == ["hang: rank 1 does not get on"]


def test_the_status_of_a_directory_that_is_no_run_says_what_to_name(tmp_path):
    with pytest.raises(FormatError, match=r"has no heartbeats: name the directory of a run that was started"):
        status(tmp_path)


@pytest.mark.parametrize(
    ("spent", "phase", "limit_s"),
    [
        ([], SETUP, 1800),
        ([], COMPUTE, 1800),
        ([], SAVE, 1800),
        ([(1, COMPUTE, 500)], COMPUTE, 1800),  # the first step goes on
        ([(1, COMPUTE, 500), (2, FETCH, 1)], COMPUTE, 1800),  # it compiled: nothing is known of others
        ([(1, COMPUTE, 500), (2, FETCH, 1), (3, FETCH, 1)], COMPUTE, 60),
        ([(1, FETCH, 1), (2, FETCH, 10), (2, COMPUTE, 30), (3, FETCH, 1)], OPTIMIZE, 200),
        ([(1, FETCH, 1), *((step, FETCH, 100 if step == 9 else 20) for step in range(2, 40))], FETCH, 100),
        ([(1, SAVE, 3)], SAVE, 600),
        ([(1, SAVE, 300)], SAVE, 1500),
        ([(1, SAVE, 300)], VALIDATE, 1800),
        ([(1, FETCH, 1), (2, FETCH, 1), (2, VALIDATE, 50), (2, FETCH, 1), (3, FETCH, 1)], FETCH, 60),
    ],
)
def test_a_phase_may_take_five_times_what_it_took_and_at_least_its_share_of_the_timeout(spent, phase, limit_s):
    patience = Patience(60)
    for step, kind, seconds in spent:
        patience.spent(step, kind, seconds)
    assert patience.limit_s(phase) == pytest.approx(SILENCE * limit_s)


def test_without_a_timeout_any_phase_may_take_for_ever():
    patience = Patience(math.inf)
    for step in range(4):
        patience.spent(step, COMPUTE, 1.0)
    assert {patience.limit_s(phase) for phase in PHASES} == {math.inf}
