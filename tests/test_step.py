"""Steps that go wrong: a loss or a gradient that is not finite, and spikes. One process, a real run."""

import json
import math
import shutil

import pytest
import torch

from shared.cursor import Cursor
from shared.errors import ConfigError, UserError
from shared.storage import write_sealed
from tests.train_helpers import group_of_one, random_tokens, recipe, unasked, write_tokens
from train.checkpoint import Progress
from train.gradient import Gradient, why_not_finite
from train.preflight import prepare
from train.records import read_metrics
from train.request import RunRequest
from train.rollback import ROLLBACKS_NAME, skip_again
from train.run import execute
from train.single import SingleStrategy
from train.spikes import LEAST, Spikes, robust_score

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf
POISON, OFTEN = 63, 62  # ids that are in one batch alone, that of step 21, and in those of steps 6, 11 and 16
STEPS = 25
OPTIONS = {
    "training__total_steps": STEPS,
    "optimizer__learning_rate": 1e-3,
    "data__order": "natural",
    "data__validation_chunks": 0,
    "checkpoint__every": 4,
    "checkpoint__keep": 9,
}


@pytest.fixture(scope="module")
def group():
    with group_of_one():
        yield


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """100 chunks of 16 ids: 25 steps of four. Rows are of ten ids: the poison is in row 128."""
    directory = tmp_path_factory.mktemp("step") / "tokens"
    ids = [min(token, OFTEN - 1) for token in random_tokens(1601)]
    ids[1280] = POISON
    for chunk in (20, 40, 60):
        ids[16 * chunk] = OFTEN
    write_tokens(directory, [ids], vocab_size=64, rows=[[10] * 160 + [1]])
    return directory


def worse(factor, marker=POISON):
    """What makes the loss of each microbatch worse that holds the marker."""
    return lambda loss, batch: loss * factor if (batch.inputs_BT == marker).any() else loss


def worse_gradient(loss, batch):
    """What leaves the loss as it is, but not its gradient."""
    if (batch.inputs_BT == POISON).any() and loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * NAN)
    return loss


def run(tokens, directory, lose=None, stop_step=None, **changes):
    """Its records and events; `lose(loss, batch)` is what becomes of the loss of each microbatch."""
    plain = SingleStrategy._loss
    with pytest.MonkeyPatch.context() as patch:
        if lose is not None:
            patch.setattr(SingleStrategy, "_loss", lambda self, batch: lose(plain(self, batch), batch))
        execute(prepare(RunRequest(tokens, directory, recipe(**OPTIONS | changes), stop_step), 1), CPU, unasked())
    return read_metrics(directory), events(directory)


def events(directory):
    return [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]


def named(found, name):
    return [event for event in found if event["event"] == name]


def losses(records):
    return [record["loss"] for record in records]


@pytest.fixture(scope="module")
def healthy(group, tokens, tmp_path_factory):
    records, found = run(tokens, tmp_path_factory.mktemp("healthy") / "run")
    assert not named(found, "spike") + named(found, "bad-step")
    return records


@pytest.mark.parametrize(
    ("first", "again", "cause"),
    [
        (Gradient(NAN, NAN), Gradient(NAN, NAN), "the data or the model"),
        (Gradient(2.0, INF), Gradient(2.0000001, INF), "the data or the model"),
        (Gradient(INF, NAN), Gradient(INF, NAN), "the data or the model"),
        (Gradient(NAN, NAN), Gradient(2.0, 1.0), "the hardware"),
        (Gradient(2.0, NAN), Gradient(2.0, 1.0), "the hardware"),
        (Gradient(INF, NAN), Gradient(-INF, NAN), "the hardware"),
        (Gradient(2.0, INF), Gradient(2.5, INF), "the hardware"),
    ],
)
def test_the_same_again_is_the_data_or_the_model_and_another_value_the_hardware(first, again, cause):
    assert not first.is_finite
    assert why_not_finite(first, again) == cause


@pytest.mark.parametrize("lose", [worse(NAN), worse(INF), worse_gradient], ids=["nan", "inf", "gradient"])
def test_a_step_that_is_not_finite_twice_is_skipped_with_its_documents_named(tokens, tmp_path, healthy, lose):
    records, found = run(tokens, tmp_path / "run", lose)
    (bad,) = named(found, "bad-step")
    assert (bad["step"], bad["cause"], bad["skipped"]) == (21, "the data or the model", True)
    assert bad["problem"].endswith("so the cause is the data or the model: skipped, the 1. of at most 10")
    rows = [[16 * chunk // 10, (16 * chunk + 16) // 10] for chunk in range(80, 84)]
    assert bad["documents"] == [{"source": "a.parquet", "rows": pair} for pair in rows]
    assert [record["step"] for record in records if record["loss"] is None] == [21]
    assert losses(records)[:20] == losses(healthy)[:20]
    assert all(map(math.isfinite, losses(records)[21:]))
    assert [record["data_digest"] for record in records] == [record["data_digest"] for record in healthy]
    assert (records[-1]["tokens"], records[-1]["skipped"]) == (healthy[-1]["tokens"] - 64, 1)


def test_what_is_finite_the_second_time_is_used_and_told_as_hardware(tokens, tmp_path, healthy):
    calls = []

    def once(loss, batch):
        calls.extend([batch] * bool(batch.inputs_BT.any()))  # what is tried before the first step is all one id
        return loss * NAN if len(calls) == 12 else loss

    records, found = run(tokens, tmp_path / "run", once)
    (bad,) = named(found, "bad-step")
    assert (bad["step"], bad["cause"], bad["skipped"]) == (6, "the hardware", False)
    assert bad["problem"].endswith("so the cause is the hardware: the second is used")
    assert losses(records) == losses(healthy)


def test_skipped_steps_are_counted_over_a_resume_and_end_the_run_after_the_limit(tokens, tmp_path, healthy):
    options = {"lose": worse(NAN, OFTEN), "recovery__max_skipped_steps": 2}
    message = (
        r"^step 16: loss nan and gradient norm nan, .* the data or the model: recovery.max_skipped_steps is 2, and 2 "
        r"steps were skipped before; lower optimizer.learning_rate, or look at the documents in events.jsonl, then "
        r"start again: the newest checkpoint is used$"
    )
    run(tokens, tmp_path / "run", stop_step=13, **options)
    with pytest.raises(UserError, match=message):
        run(tokens, tmp_path / "run", **options)
    assert [event["step"] for event in named(events(tmp_path / "run"), "bad-step")] == [6, 11, 16]
    assert [record["step"] for record in read_metrics(tmp_path / "run")][-1] == 15


def test_a_spike_is_an_event_with_its_documents(tokens, tmp_path, healthy):
    records, found = run(tokens, tmp_path / "run", worse(50))
    (spike,) = named(found, "spike")
    assert (spike["step"], list(spike["scores"]), len(records)) == (21, ["loss", "grad_norm"], STEPS)
    assert spike["documents"][0] == {"source": "a.parquet", "rows": [128, 129]}
    assert " standard deviations above its median" in spike["problem"]
    assert not named(run(tokens, tmp_path / "none", worse(50), recovery__spike_score=None)[1], "spike")


def test_a_rollback_goes_on_behind_the_spike_from_a_checkpoint_before_it_also_after_a_kill(tokens, tmp_path, healthy):
    options = {"lose": worse(50), "recovery__rollback_steps": 4}
    records, found = run(tokens, tmp_path / "run", **options)
    (back,) = named(found, "rollback")
    assert (back["step"], back["to"]) == (21, 16)
    assert losses(records)[:16] == losses(healthy)[:16]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    chunks = [16 * record["epoch"] * 100 // 16 + record["offset"] for record in records]
    assert chunks[15:] == [64, *range(88, 120, 4), 120][: len(chunks[15:])]  # not 68 to 84
    assert records[-1]["skipped"] == 1
    run(tokens, tmp_path / "killed", stop_step=16, **options)
    shutil.copy(tmp_path / "run" / ROLLBACKS_NAME, tmp_path / "killed")
    again, found = run(tokens, tmp_path / "killed", **options)
    assert not named(found, "spike")
    assert [losses(again), again[-1]["data_digest"]] == [losses(records), records[-1]["data_digest"]]

    for path in (tmp_path / "killed/checkpoints").glob("step-0000002?"):
        shutil.rmtree(path)
    longer, _ = run(tokens, tmp_path / "killed", stop_step=17, data__sequence_length=32, **options)
    assert (longer[-1]["step"], longer[-1]["offset"]) == (17, 84 // 2 + 4)


def test_a_run_that_went_back_is_not_continued_in_the_middle_of_a_longer_chunk(tmp_path):
    skip = {"step": 4, "start": (0, 1, 64), "end": (0, 1, 144)}
    write_sealed(tmp_path / ROLLBACKS_NAME, {"skips": [skip]})
    assert skip_again(tmp_path, Progress(4, Cursor(0, 1, 4), 0, ""), 16).cursor == Cursor(0, 1, 9)
    with pytest.raises(
        ConfigError, match=r"goes on behind a spike, 16 tokens into a chunk of 32: continue it with the "
    ):
        skip_again(tmp_path, Progress(4, Cursor(0, 1, 2), 0, ""), 32)


def test_without_a_checkpoint_before_it_a_spike_is_gone_on_from_with_a_warning(tokens, tmp_path, healthy):
    options = {"lose": worse(50), "recovery__rollback_steps": 4, "checkpoint__every": None}
    records, found = run(tokens, tmp_path / "run", **options)
    assert named(found, "warning")[-1]["problem"] == (
        "no checkpoint of step 17 or earlier to go back to: raise checkpoint.keep"
    )
    assert (len(records), named(found, "rollback")) == (STEPS, [])


def test_a_rollback_counts_as_a_skipped_step(tokens, tmp_path, healthy):
    options = {"lose": worse(50), "recovery__rollback_steps": 4, "recovery__max_skipped_steps": 0}
    with pytest.raises(UserError, match=r"^step 21: another spike, and recovery.max_skipped_steps is 0: lower optim"):
        run(tokens, tmp_path / "run", **options)


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        ([3.0] * LEAST + [3.2], {"loss": pytest.approx(13.3, abs=0.1)}),
        ([3.0] * LEAST + [3.1], {}),
        ([3.0] * (LEAST - 1) + [9.0], {}),  # too little to compare with
        ([3.0] * LEAST + [1.0], {}),  # below is no spike
        ([3.0, 3.3, 3.7, 4.0] * LEAST + [6.0], {}),  # unsteady anyway
    ],
)
def test_a_loss_stands_out_from_those_before_it(values, scores):
    spikes = Spikes(10.0, ({"loss": value, "grad_norm": 1.0} for value in values[:-1]))
    assert spikes.seen({"loss": values[-1], "grad_norm": 1.0}) == scores


def test_a_spike_does_not_hide_the_next_one():
    spikes = Spikes(10.0, ({"loss": 3.0, "grad_norm": 1.0} for _ in range(LEAST)))
    assert [bool(spikes.seen({"loss": 4.0, "grad_norm": 1.0})) for _ in range(100)] == [True] * 100


def test_the_score_of_normal_numbers_is_their_distance_in_standard_deviations():
    numbers = torch.randn(10_001, generator=torch.Generator().manual_seed(0)).tolist()
    assert robust_score(3.0, numbers, 0.0) == pytest.approx(3.0, abs=0.15)
