"""What follows from the events of a run, and single records out of many."""

import json
import re

import pytest

from shared.config import unstructure
from shared.errors import FormatError
from tests.train_helpers import recipe
from train.config import DataConfig
from train.history import Stretch, history
from train.layout import Layout
from train.records import Records, read_events, read_metrics

RECIPE = recipe()
ONE, TWO = Layout("fsdp", 1, 1, 1, 2), Layout("pipeline", 2, 1, 1, 4)


def start(step, layout=ONE, microbatch=2, offset=0, **data):
    grid = {name: getattr(layout, name) for name in layout.__dataclass_fields__}
    options = unstructure(DataConfig(**{**unstructure(RECIPE.data), **data}))
    told = {"cursor": [0, 0, offset], "data": options, "grid": grid, "microbatch": microbatch, "tokens": f"/at{step}"}
    return {"event": "start", "step": step, "layout": str(layout), "reads": told}


def old_start(step):
    return {"event": "start", "step": step, "layout": "fsdp over 2 ranks, 1 microbatches", "dataset": "0"}


def backoff(step, to, **more):
    return {"event": "backoff", "step": step, "from": 2 * to, "to": to, **more}


def rollback(step, to, **more):
    return {"event": "rollback", "step": step, "to": to, **more}


def changed(*names):
    return {"event": "changed", "step": 0, "changes": [f"recipe.{name} was 1, now 2" for name in names]}


def told(found):
    """After which step each stretch begins, since when it reads on from where, and its microbatch."""
    return [(s.after, s.begun, s.cursor and s.cursor.offset, s.microbatch) for s in found.stretches]


@pytest.mark.parametrize(
    ("events", "stretches"),
    [
        ([], []),
        ([start(0)], [(0, 0, 0, 2)]),
        ([start(0), {"event": "save", "step": 4}, start(4, TWO, 1, 16)], [(0, 0, 0, 2), (4, 4, 16, 1)]),
        ([start(0), start(4, TWO, 1, 16), start(2, ONE, 2, 8)], [(0, 0, 0, 2), (2, 2, 8, 2)]),  # started from before
        ([start(0), start(0, TWO, 1)], [(0, 0, 0, 1)]),
        ([start(0), backoff(5, 1, first=5)], [(0, 0, 0, 2), (4, 0, 0, 1)]),
        ([start(0), backoff(5, 1, first=6)], [(0, 0, 0, 2), (5, 0, 0, 1)]),  # in the validation after step 5
        ([start(0), backoff(5, 1)], [(0, 0, 0, 2), (4, 0, 0, 1)]),  # of a release that did not tell
        ([start(4, offset=16), backoff(0, 1, first=1)], [(4, 4, 16, 1)]),  # of a loss that was owed: since this start
        ([backoff(0, 1, first=0), start(0, microbatch=1)], [(0, 0, 0, 1)]),  # before the first step
        ([start(0), rollback(9, 4, cursor=[0, 0, 36])], [(0, 0, 0, 2), (4, 4, 36, 2)]),
        ([start(0), rollback(9, 4)], [(0, 0, 0, 2), (4, 4, None, 2)]),
        (
            [start(0), backoff(3, 1, first=3), rollback(9, 2, cursor=[0, 0, 36]), start(4, TWO, 1, 44)],
            [(0, 0, 0, 2), (2, 2, 36, 1), (4, 4, 44, 1)],
        ),
    ],
    ids=str,
)
def test_stretches_are_those_that_the_weights_come_of(events, stretches):
    assert told(history(events, RECIPE)) == stretches


def test_a_stretch_has_the_options_and_the_layout_of_its_start():
    found = history(
        [start(0), start(4, TWO, 1, 16, global_batch=8, validation_chunks=8), backoff(6, 1, first=6)], RECIPE
    )
    assert [stretch.data.global_batch for stretch in found.stretches] == [4, 8, 8]
    assert [stretch.layout for stretch in found.stretches] == [ONE, TWO, Layout("pipeline", 2, 1, 1, 8)]
    assert [stretch.told.split(",")[1] for stretch in found.stretches] == [f" {n} microbatches" for n in (2, 4, 8)]
    assert str(found.tokens) == "/at4"


@pytest.mark.parametrize(("step", "after"), [(1, 0), (4, 0), (5, 4), (9, 4), (10, 9), (10**6, 9)])
def test_a_step_is_of_the_stretch_that_began_before_it(step, after):
    assert history([start(0), start(4), start(9)], RECIPE).of(step).after == after


def test_a_run_that_was_never_started_has_no_stretch():
    assert history([], RECIPE).of(1) is None


def test_what_a_rollback_undid_is_kept():
    found = history([start(0), start(6, TWO, 1, 24), rollback(9, 4, cursor=[0, 0, 36])], RECIPE)
    assert [(stretch.after, stretch.begun, stretch.layout, last) for stretch, last in found.undone] == [
        (4, 0, ONE, 6),
        (6, 6, TWO, 9),
    ]
    assert [(stretch.after, last) for stretch, last in found.until(12)] == [(0, 4), (4, 12)]
    assert [(stretch.after, last) for stretch, last in found.until(3)] == [(0, 3)]


def test_a_start_that_told_nothing_had_the_options_of_now_unless_others_came_later():
    wanted = Stretch(4, 4, None, RECIPE.data, None, None, "fsdp over 2 ranks, 1 microbatches")
    assert history([old_start(4)], RECIPE).stretches == [wanted]
    assert history([old_start(0), old_start(4), changed("strategy")], RECIPE).stretches[1] == wanted
    before, after = history([old_start(0), old_start(4), changed("data.global_batch")], RECIPE).stretches
    assert (before.data, after) == (None, wanted)
    assert history([old_start(0), start(4), changed("data.global_batch")], RECIPE).stretches[0].data is None


@pytest.fixture
def metrics(tmp_path):
    """The records of steps 1 to 300, of uneven lengths, and one that a kill cut short."""
    lines = [json.dumps({"step": step, "x": "y" * (step * 7 % 50)}) + "\n" for step in range(1, 301)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 301, "x')
    return tmp_path / "metrics.jsonl"


def test_each_record_is_found_by_its_step(metrics):
    records = Records(metrics)
    assert [records.of(step)["step"] for step in range(1, 301)] == list(range(1, 301))
    assert [records.of(step) for step in (0, 301, 10**9)] == [None] * 3
    assert records.last_step == 300


@pytest.mark.parametrize("contents", [None, "", '{"step": 1'])
def test_a_run_without_records_has_none(tmp_path, contents):
    if contents is not None:
        (tmp_path / "metrics.jsonl").write_text(contents)
    records = Records(tmp_path / "metrics.jsonl")
    assert (records.of(1), records.last_step) == (None, 0)


@pytest.mark.parametrize(("name", "read"), [("metrics.jsonl", read_metrics), ("events.jsonl", read_events)])
def test_a_line_that_a_kill_cut_short_is_left_out_and_a_damaged_one_is_told(tmp_path, name, read):
    (tmp_path / name).write_text('{"step": 1}\n{"st')
    assert read(tmp_path) == [{"step": 1}]
    (tmp_path / name).write_text('{"step": 1}\n{"st\n')
    message = rf"{re.escape(str(tmp_path / name))} is damaged \(.*\): take out the line that is not JSON"
    with pytest.raises(FormatError, match=message):
        read(tmp_path)
