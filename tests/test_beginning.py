"""Runs that begin from another one: what they read, what they take over, and that all of it survives a restart."""

import shutil
from dataclasses import replace

import pytest
import torch

from shared.errors import ConfigError, FormatError
from shared.format import TOKENIZER_NAME, read_index, write_index
from shared.storage import write_file
from tests.train_helpers import random_tokens, recipe, unasked, write_tokens
from train.preflight import prepare
from train.records import read_metrics
from train.replay import Replay
from train.request import RunRequest
from train.run import execute
from train.run_files import CHECKPOINTS_NAME
from train.sample import load_model
from train.trace import Trace

pytestmark = pytest.mark.usefixtures("process_group")

CPU = torch.device("cpu")
MIXTURE = {"data__sources": [{"name": "web", "weight": 0.75}, {"name": "code", "weight": 0.25}]}
UNITS = {"data__shuffle_length": 64, "data__global_batch": 2}
LONGER = {**UNITS, "data__sequence_length": 32, "data__validation_chunks": 2}
STILL = {"optimizer__learning_rate": 0.0, "optimizer__min_learning_rate": 0.0}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Two datasets in chunks of 16: 80, of which runs train on 76, and 13."""
    directory = tmp_path_factory.mktemp("tokens")
    write_tokens(directory / "web", [random_tokens(641), random_tokens(641, seed=1)], vocab_size=64)
    write_tokens(directory / "code", [random_tokens(201, seed=3)], vocab_size=64)
    return directory


@pytest.fixture(scope="module")
def before(tokens, tmp_path_factory):
    """A run of 6 steps on one dataset."""
    run = tmp_path_factory.mktemp("before") / "run"
    executed(tokens / "web", run, training__total_steps=6)
    return run


def executed(tokens, run, stop_step=None, begin_from=None, reset_optimizer=False, **changes):
    request = RunRequest(
        tokens, run, recipe(**changes), stop_step, begin_from=begin_from, reset_optimizer=reset_optimizer
    )
    execute(prepare(request, 1), CPU, unasked())
    return read_metrics(run)


def read_by(run, last, name=None):
    """(file, row, id) of each target of the steps up to `last`; of a mixture, of one source."""
    trace, found = Trace(Replay(run)), []
    for step in range(1, last + 1):
        for chunk in trace.step(step).chunks:
            for part in chunk.documents:
                source = part.source if name is None else part.source.removeprefix(f"{name}/")
                if name is None or part.source != source:
                    found += [(source, part.row, id_) for id_ in range(part.start + (part.place == 0), part.stop)]
    return found


def test_a_mixture_begins_in_each_dataset_behind_what_was_read(tokens, before, tmp_path):
    run = tmp_path / "run"
    executed(tokens, run, begin_from=before, training__total_steps=16, **MIXTURE)
    already, web = read_by(before, 6), read_by(run, 16, "web")
    assert len(web) == 48 * 16
    assert not set(already) & set(web)  # 24 chunks before, 48 since, of 76
    assert prepare(RunRequest(tokens, run, Replay(run).config), 1).starts == (24, 0)


def test_a_longer_context_reads_nothing_again_and_one_dataset_goes_on_where_it_was(tokens, tmp_path):
    executed(tokens / "web", tmp_path / "short", training__total_steps=5, **UNITS)
    run = tmp_path / "long"
    executed(tokens / "web", run, begin_from=tmp_path / "short", training__total_steps=8, **LONGER)
    already, since = read_by(tmp_path / "short", 5), read_by(run, 8)
    assert len(already) == 10 * 16
    assert not set(already) & set(since)
    assert len(set(since)) == len(since) == 8 * 2 * 32
    assert prepare(RunRequest(tokens / "web", run, Replay(run).config), 1).starts == (5,)


def test_a_dataset_goes_on_behind_what_an_earlier_stage_has_read_of_it(tokens, before, tmp_path):
    """Web, then code alone, then both."""
    executed(tokens / "code", tmp_path / "code", begin_from=before, training__total_steps=1)
    run = tmp_path / "both"
    executed(tokens, run, begin_from=tmp_path / "code", training__total_steps=4, **MIXTURE)
    assert prepare(RunRequest(tokens, run, Replay(run).config), 1).starts == (24, 4)
    assert not set(read_by(before, 6)) & set(read_by(run, 4, "web"))
    assert not set(read_by(tmp_path / "code", 1)) & set(read_by(run, 4, "code"))
    request = RunRequest(tokens, tmp_path / "n", recipe(**MIXTURE, training__seed=1), begin_from=tmp_path / "code")
    with pytest.raises(
        ConfigError, match=r"before0/run has read .*web in another order \(training\.seed was 0, now 1\)"
    ):
        prepare(request, 1)


def test_the_weights_are_those_of_the_other_run(tokens, before, tmp_path):
    executed(tokens, tmp_path / "run", begin_from=before, training__total_steps=1, **MIXTURE, **STILL)
    was, now = (load_model(run)[0].state_dict() for run in (before, tmp_path / "run"))
    assert was.keys() == now.keys()
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_the_optimizers_state_is_kept_or_reset_by_choice(tokens, before, tmp_path):
    fast = {"training__total_steps": 3, "optimizer__min_learning_rate": 1e-2, "begin_from": before}
    kept = executed(tokens / "web", tmp_path / "kept", **fast)
    reset = executed(tokens / "web", tmp_path / "reset", reset_optimizer=True, **fast)
    assert kept[0]["loss"] == reset[0]["loss"]
    assert kept[1]["loss"] != reset[1]["loss"]


def test_a_run_that_began_from_another_goes_on_as_if_it_had_never_stopped(tokens, before, tmp_path):
    options = {"training__total_steps": 4, **MIXTURE}
    whole = executed(tokens, tmp_path / "whole", begin_from=before, **options)
    executed(tokens, tmp_path / "cut", 2, begin_from=before, **options)
    cut = executed(tokens, tmp_path / "cut", **options)
    executed(tokens, tmp_path / "killed", 2, begin_from=before, **options)
    shutil.rmtree(tmp_path / "killed" / CHECKPOINTS_NAME)  # as if it had been killed before its first save
    killed = executed(tokens, tmp_path / "killed", begin_from=before, **options)
    for records in (cut, killed):
        assert [(r["loss"], r["data_digest"]) for r in records] == [(r["loss"], r["data_digest"]) for r in whole]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__seed": 1}, r"has read .*web in another order \(training\.seed was 0, now 1\): give what it had"),
        ({"data__order": "natural"}, r"\(data\.order was shuffled, now natural\)"),
        ({"data__validation_chunks": 8}, r"\(64 tokens were held out, now 128\)"),
        (
            {"data__sequence_length": 32, "data__validation_chunks": 2, "data__global_batch": 2},
            r"\(without data\.shuffle_length the chunks of 16 are what was shuffled\)",
        ),
    ],
)
def test_a_dataset_that_would_be_read_in_another_order_is_refused(tokens, before, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(RunRequest(tokens, tmp_path / "run", recipe(**MIXTURE, **changes), begin_from=before), 1)


def test_a_beginning_that_cannot_be_is_refused(tokens, before, tmp_path):
    with pytest.raises(FormatError, match=r"nothing is not a run \(no run\.json\)"):
        prepare(RunRequest(tokens, tmp_path / "run", recipe(**MIXTURE), begin_from=tmp_path / "nothing"), 1)
    with pytest.raises(ConfigError, match="--reset-optimizer is given without --begin-from"):
        prepare(RunRequest(tokens, tmp_path / "run", recipe(**MIXTURE), reset_optimizer=True), 1)
    unsaved = shutil.copytree(before, tmp_path / "unsaved", ignore=shutil.ignore_patterns("step-*"))
    with pytest.raises(ConfigError, match=r"unsaved has no checkpoint to begin from: train it until it has saved one"):
        prepare(RunRequest(tokens, tmp_path / "run", recipe(**MIXTURE), begin_from=unsaved), 1)
    others = shutil.copytree(tokens, tmp_path / "others")
    for name in ("web", "code"):
        sha256 = write_file(others / name / TOKENIZER_NAME, [b"[]"])
        index = read_index(tokens / name)
        write_index(others / name, replace(index, tokenizer=replace(index.tokenizer, sha256=sha256)))
    with pytest.raises(
        ConfigError, match=r"was trained with tokenizer 44136fa355b3, this run has 4f53cda18c2b: one is"
    ):
        prepare(RunRequest(others, tmp_path / "run", recipe(**MIXTURE), begin_from=before), 1)
    with pytest.raises(ConfigError, match=r"run is there already and began from nothing, not from .*: name another"):
        prepare(RunRequest(tokens / "web", before, recipe(training__total_steps=6), begin_from=tmp_path / "x"), 1)


def test_a_checkpoint_that_a_run_begins_from_must_be_there_and_whole_until_the_run_has_its_own(
    tokens, before, tmp_path
):
    earlier = shutil.copytree(before, tmp_path / "earlier")
    prepared = prepare(RunRequest(tokens, tmp_path / "run", recipe(**MIXTURE), begin_from=earlier), 1)
    shutil.rmtree(earlier / CHECKPOINTS_NAME / "step-00000006")
    with pytest.raises(FormatError, match=r"step-00000006.*: this run begins from it, put it back"):
        execute(prepared, CPU, unasked())
