"""Where the time of a run went, and what its starts did: hand-made files against arithmetic on paper."""

import math

import numpy as np
import pytest

from tests.report_runs import BEGAN, event, start, step, steps, write_run
from train.lost_time import CAUSES, lost_time
from train.recorded import read_run
from train.starts import UNTOLD, starts_of

FINISHED = {"step": 10, "reason": "all steps are done"}


def timed(run, now=10_000.0):
    recorded = read_run(run)
    starts = starts_of(recorded, BEGAN + now)
    return lost_time(recorded, starts), starts


CASES = {
    "one start": (
        steps(1, 10),
        [start(5), event(16, "finished", **FINISHED)],
        {"training": 9.0, "data": 1.0, "setup": 5.0, "between steps": 1.0},
    ),
    "a save and a validation": (
        [*steps(1, 9), step(10, validation_loss=4.0, validation_s=2.0)],
        [start(5), event(18, "save", step=10, stall_s=0.5, save_s=3.0), event(19, "finished", **FINISHED)],
        {"training": 9.0, "data": 1.0, "validation": 2.0, "saves": 0.5, "setup": 5.0, "between steps": 1.5},
    ),
    "a rank died, two steps again": (
        steps(1, 10),
        [
            start(5),
            event(12, "restart", step=4, rank=1, reason="rank 1 was ended by SIGKILL"),
            start(20, 4, undone=2, setup_s=6.0, restarts=1),
            event(26.5, "finished", **FINISHED),
        ],
        # 4 + 2 steps in 7 s, 2 s from the death to the next process, which takes 6 s, 6 steps in 6.5 s
        {"training": 9.0, "data": 1.0, "done twice": 2.0, "setup": 5.0 + 2.0 + 6.0, "broken off": 1.0}
        | {"between steps": 0.5},
    ),
    "a hang": (
        steps(1, 10),
        [
            start(5),
            event(69, "hang", step=5, ranks=[1], problem="rank 1 on node1 does not move"),
            event(72, "restart", step=4, rank=1, reason="rank 1 ended with exit code 72"),
            start(80, 4, undone=0, restarts=1),
            event(86, "finished", **FINISHED),
        ],
        {"training": 9.0, "data": 1.0, "setup": 5.0 + 3.0 + 5.0, "hangs": 63.0},
    ),
    "two jobs": (
        steps(1, 10),
        [
            start(5),
            event(11, "stopped", step=6, reason="SIGTERM"),
            start(1011, 6),
            event(1015, "finished", **FINISHED),
        ],
        {"training": 9.0, "data": 1.0, "setup": 10.0, "gaps": 995.0},
    ),
    "all was killed, and nobody told": (
        steps(1, 10),
        [
            start(5),
            event(9.5, "save", step=4, stall_s=0.25),
            start(100, 4, undone=1),
            event(106, "finished", **FINISHED),
        ],
        # 4 steps, a save and a step that was lost: 5.25 s; then nothing is known until the next process
        {"training": 9.0, "data": 1.0, "done twice": 1.0, "saves": 0.25, "setup": 10.0, "gaps": 95 - 10.25},
    ),
    "a step that was skipped, one tried twice, one out of memory": (
        [*steps(1, 4), step(5, loss=None, grad_norm=None), step(6), step(7, step_s=3.0), step(8, step_s=5.0), step(9)],
        [
            start(5),
            event(10, "bad-step", step=5, skipped=True),
            event(12, "bad-step", step=7, skipped=False),
            event(15, "backoff", step=8, **{"from": 4, "to": 2}),
            event(20, "stopped", step=9, reason="SIGTERM"),
        ],
        {"training": 7.2, "data": 0.8, "bad steps": 1.0 + 2.0, "memory": 4.0, "setup": 5.0},
    ),
    "a first step that is longer": (
        [step(1, step_s=31.0), *steps(2, 10)],
        [start(5), event(45, "finished", **FINISHED)],
        {"training": 9.0, "data": 1.0, "first steps": 30.0, "setup": 5.0},
    ),
    "a rollback": (
        steps(1, 6),
        [
            start(5),
            event(13, "spike", step=8, problem="step 8: loss"),
            event(13.5, "rollback", step=8, to=4, undone=4, undone_s=4.0),
            event(15.5, "stopped", step=6, reason="SIGTERM"),
        ],
        {"training": 5.4, "data": 0.6, "done twice": 4.0, "setup": 5.0, "between steps": 0.5},
    ),
    "nothing but a start": ([], [start(5)], {"setup": 5.0}),
    "nothing at all": ([], [], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_time_of_a_run_is_told_by_cause_and_adds_up(tmp_path, case):
    records, events, expected = CASES[case]
    lost, starts = timed(write_run(tmp_path / "run", records, events))
    assert lost.seconds == pytest.approx(expected)
    assert list(lost.seconds) == [cause for cause in CAUSES if cause in lost.seconds]
    if events:
        ends = [e["time"] for e in events]
        assert lost.total_s == pytest.approx(max(ends) - starts[0].began_s)


def test_what_the_files_do_not_tell_is_said(tmp_path):
    old = [{**start(at, after), "old": 1} for at, after in ((5, 0), (30, 4))]
    for told in old:
        del told["setup_s"], told["undone"], told["undone_s"]
    lost, _ = timed(write_run(tmp_path / "run", [*steps(1, 5), step(6, validation_loss=4.0)], old))
    assert [text.partition("(")[0].strip() for text in lost.unknown] == [
        "2 starts do not tell when it ended: what it did after its last line counts as a gap, or is not in the total",
        "2 starts do not tell how long its setup took",
        "1 start does not tell what it did again",
        "1 validation losses without their seconds",
    ]
    assert lost.seconds == pytest.approx({"training": 5.4, "data": 0.6, "gaps": 21.0})


@pytest.mark.parametrize(
    ("events", "state", "how", "is_cut"),
    [
        ([event(9, "finished", **FINISHED)], {}, "finished: all steps are done", False),
        ([event(9, "stopped", reason="--stop-step")], {}, "stopped: --stop-step", False),
        ([event(9, "restart", reason="rank 1 was ended by SIGKILL")], {}, "died: rank 1 was ended by SIGKILL", True),
        ([event(9, "stopped", reason="SIGTERM"), event(20, "restart", reason="72")], {}, "stopped: SIGTERM", False),
        ([event(8, "hang", problem="rank 1 hangs")], {}, "hang: rank 1 hangs", True),
        ([event(8, "hang", problem="rank 1 hangs"), event(9, "restart", reason="72")], {}, "hang: rank 1 hangs", True),
        ([], {"state": "failed", "reason": "no room", "time": BEGAN + 9}, "failed: no room", True),
        ([], {"state": "failed", "reason": "long ago", "time": BEGAN - 9}, UNTOLD, True),
        ([], {"state": "running", "reason": "", "time": BEGAN + 9}, UNTOLD, True),
    ],
)  # fmt: skip
def test_how_a_start_ended_is_told(tmp_path, events, state, how, is_cut):
    _, (told,) = timed(write_run(tmp_path / "run", steps(1, 2), [start(5), *events], **state))
    assert (told.how, told.is_cut) == (how, is_cut)
    assert (told.time_s, told.began_s) == (BEGAN + 5, BEGAN)
    assert math.isnan(told.end_s) == how.startswith("not told")


@pytest.mark.parametrize(
    ("afters", "last", "spans"),
    [
        ([0], 5, [(0, 5)]),
        ([0, 3], 5, [(0, 3), (3, 5)]),
        ([0, 3, 3], 5, [(0, 3), (3, 3), (3, 5)]),  # the second got nowhere
        ([0, 6, 4, 8], 9, [(0, 4), (6, 6), (4, 8), (8, 9)]),  # the newest checkpoint was damaged: 5 and 6 again
        ([0, 3], 0, [(0, 0), (3, 3)]),
    ],
)
def test_each_step_is_of_the_last_start_that_did_it(tmp_path, afters, last, spans):
    starts = [start(10 * number + 5, after) for number, after in enumerate(afters)]
    _, told = timed(write_run(tmp_path / "run", steps(1, last), starts))
    assert [(one.after, one.until) for one in told] == spans
    assert sum(one.num_steps for one in told) == last


def test_an_event_before_a_start_is_of_that_start(tmp_path):
    events = [start(5), event(50, "backoff", step=0, to=1), event(51, "damaged", problem="x"), start(54, 0)]
    _, told = timed(write_run(tmp_path / "run", [], events))
    assert [one.seen_s for one in told] == [BEGAN + 5, BEGAN + 54]


def test_a_start_without_a_step_is_told_of_as_a_problem(tmp_path):
    run = write_run(tmp_path / "run", steps(1, 2), [{**start(5), "step": "x"}])
    recorded = read_run(run)
    assert starts_of(recorded, BEGAN) == []
    assert recorded.problems == ["a start in events.jsonl tells no step: no start is told of"]


LEFT_OUT = {
    '{"step": 3, "lo': "metrics.jsonl ends in the middle of a line, which is left out",
    '{"step": 3}': "metrics.jsonl ends in the middle of a line, which is left out",
    "nonsense\n": "metrics.jsonl has 1 line that is no JSON object: left out",
    "[1]\n7\n": "metrics.jsonl has 2 lines that is no JSON object: left out",
    '{"loss": 1.0}\n': "metrics.jsonl has 1 line without a step: left out",
    '{"step": 1e999}\n': "metrics.jsonl has 1 line without a step: left out",
}


@pytest.mark.parametrize("line", LEFT_OUT)
def test_a_line_that_cannot_be_read_is_left_out_and_told(tmp_path, line):
    recorded = read_run(write_run(tmp_path / "run", [*steps(1, 2), line], []))
    assert (recorded.num_steps, recorded.problems) == (2, [LEFT_OUT[line]])
    assert recorded.last["step"] == 2


def test_values_that_are_no_numbers_are_none(tmp_path):
    odd = [step(2, loss="5"), step(3, loss=[1]), step(4, loss=10**400), step(5, loss=None), step(6, loss=math.inf)]
    recorded = read_run(write_run(tmp_path / "run", [step(1), *odd], [{"event": "save", "time": 1e300}, {"time": 1.0}]))
    assert np.isnan(recorded.columns["loss"]).tolist() == [False, *5 * [True]]
    assert recorded.problems == ["events.jsonl has 2 lines without a time or a name: left out"]
