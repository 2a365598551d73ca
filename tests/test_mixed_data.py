"""Runs of several datasets: what is read by turns, after a resume, with another batch, on more ranks, and traced."""

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.errors import ConfigError, FormatError
from shared.format import INDEX_NAME, read_index, write_index
from shared.storage import read_sealed
from tests.train_helpers import random_tokens, recipe, unasked, write_tokens
from train.data import ChunkReader
from train.datasets import open_datasets
from train.held_out import held_out
from train.mixed_view import view_of
from train.passes import many_passes, passes_at_end
from train.preflight import prepare
from train.records import read_metrics
from train.replay import Replay
from train.report import PLAIN_BLOCKS, summary
from train.request import RunRequest
from train.run import execute
from train.run_files import RUN_NAME
from train.study import study
from train.trace import Trace

pytestmark = pytest.mark.usefixtures("process_group")

CPU = torch.device("cpu")
WEB, CODE = {"name": "web", "weight": 0.75}, {"name": "code", "weight": 0.25}
FIRST_OF_CODE = 32  # web has the ids below


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Two datasets of ids that tell them apart: 40 and 13 chunks of 16."""
    directory = tmp_path_factory.mktemp("tokens")
    web = [1 + token % 30 for seed in range(2) for token in random_tokens(321, seed=seed)]
    code = [FIRST_OF_CODE + token % 30 for token in random_tokens(201, seed=3)]
    write_tokens(directory / "web", [web[:321], web[321:]], vocab_size=64, rows=[[100, 221], [300, 21]])
    write_tokens(directory / "code", [code], vocab_size=64, rows=[[1, 100, 100]])
    return directory


def mixed(*sources, **changes):
    return recipe(data__sources=list(sources or (WEB, CODE)), **changes)


def reader_of(tokens, config, dp_rank=0, dp_size=1):
    return ChunkReader(view_of(open_datasets(tokens, config.data), config), config, dp_rank, dp_size, CPU)


def read(reader, steps):
    batches = [reader.fetch(step * reader.global_batch)[0] for step in range(steps)]
    reader.close()
    return torch.cat([batch.inputs_BT for batch in batches]), sum(batch.num_targets for batch in batches)


def executed(tokens, run, stop_step=None, **changes):
    execute(prepare(RunRequest(tokens, run, mixed(**changes), stop_step), 1), CPU, unasked())
    return read_metrics(run)


def events(run, name):
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in told if event["event"] == name]


@pytest.mark.parametrize("order", ["natural", "shuffled"])
def test_every_global_batch_has_of_each_source_its_share_within_one_sequence(tokens, order):
    reader = reader_of(tokens, mixed(data__global_batch=6, data__order=order, data__validation_chunks=0))
    ids, _ = read(reader, 30)  # code is read through more than once
    is_code = (ids[:, 0] >= FIRST_OF_CODE).numpy()
    assert ((ids >= FIRST_OF_CODE).all(1) | (ids < FIRST_OF_CODE).all(1) | (ids == 0).any(1)).all()
    counts = np.cumsum(is_code)
    assert np.abs(counts - 0.25 * np.arange(1, 181)).max() < 1
    assert np.abs(is_code.reshape(30, 6).sum(1) - 1.5).max() <= 1


def test_ranks_read_together_what_one_reads_alone(tokens):
    config = mixed(data__global_batch=4, data__validation_chunks=0)
    alone, num_targets = read(reader_of(tokens, config), 8)
    ranks = [read(reader_of(tokens, config, rank, 2), 8) for rank in range(2)]
    together = torch.cat([ids.reshape(8, 2, -1) for ids, _ in ranks], 1).reshape(32, -1)
    assert torch.equal(together, alone)
    assert [count for _, count in ranks] == [num_targets] * 2


def test_a_run_of_several_sources_goes_on_where_it_was_with_another_batch(tokens, tmp_path):
    whole = executed(tokens, tmp_path / "whole", training__total_steps=6)
    executed(tokens, tmp_path / "cut", 3, training__total_steps=6)
    again = executed(tokens, tmp_path / "cut", training__total_steps=6)
    assert [record["data_digest"] for record in again] == [record["data_digest"] for record in whole]
    assert [record["loss"] for record in again] == [record["loss"] for record in whole]
    executed(tokens, tmp_path / "other", 4, training__total_steps=6)
    other = executed(tokens, tmp_path / "other", training__total_steps=6, data__global_batch=2)
    assert [other[5][name] for name in ("epoch", "shard", "offset")] == [
        whole[4][name] for name in ("epoch", "shard", "offset")
    ]


def test_a_run_tells_the_validation_loss_of_each_source_and_their_mean_by_weight(tokens, tmp_path):
    record = executed(tokens, tmp_path / "run")[-1]
    each = record["validation_loss_web"], record["validation_loss_code"]
    assert each[0] != each[1]
    assert record["validation_loss"] == pytest.approx(0.75 * each[0] + 0.25 * each[1], abs=1e-12)
    assert read_sealed(tmp_path / "run" / RUN_NAME)["identity"]["sources"] == {
        name: read_index(tokens / name).fingerprint for name in ("web", "code")
    }


def test_a_run_tells_the_training_loss_of_each_source(tokens, tmp_path):
    records = executed(tokens, tmp_path / "run")
    for record in records:  # 4 sequences of 16 targets, 3 of web
        mean = 0.75 * record["loss_web"] + 0.25 * record["loss_code"]
        assert record["loss"] == pytest.approx(mean, abs=1e-5)
        assert abs(record["loss_web"] - record["loss_code"]) > 1e-3


def test_a_report_tells_the_sources(tokens, tmp_path):
    run = tmp_path / "run"
    records = executed(tokens, run)
    one = study(run, "run", None, time.time())
    told = one.figures()["sources"]["code"]
    assert [told["loss"][name] for name in ("first", "last")] == [records[at]["loss_code"] for at in (0, -1)]
    assert told["validation_loss"]["last"] == records[-1]["validation_loss_code"]
    losses = f"{records[-1]['loss_code']:.4f} at step 4, validation {records[-1]['validation_loss_code']:.4f} at step 4"
    assert f"source      code, loss {losses}" in summary(one, PLAIN_BLOCKS)
    links = {link.what: link for link in one.links}
    assert links["dataset"].fits
    assert links["source web"].hash == read_index(tokens / "web").fingerprint
    assert [path for path, _ in links["inputs"].parts] == ["web/a.parquet", "code/a.parquet"]


def test_trace_tells_the_source_of_each_document_and_finds_it_again(tokens, tmp_path):
    run = tmp_path / "run"
    executed(tokens, run, training__total_steps=20)
    trace = Trace(Replay(run))
    found = set()
    for step in range(1, 21):
        for chunk in trace.step(step).chunks:
            sources = {part.source for part in chunk.documents}
            assert sources == ({"code/a.parquet"} if chunk.shard == 2 else {"web/a.parquet"})
            found |= {(part.source, part.row, step, chunk.position) for part in chunk.documents}
    for source, row in {key[:2] for key in found}:
        sightings = [s for s in trace.sightings(source, row) if s.step <= 20]
        assert {(source, row, s.step, s.chunk.position) for s in sightings} == {
            key for key in found if key[:2] == (source, row)
        }
    assert held_out(trace.replay, "code/a.parquet", 2).validated == 4
    assert held_out(trace.replay, "web/a.parquet", 0).validated == 0


def test_a_source_that_is_read_too_often_is_refused_and_one_read_very_often_is_told(tokens, tmp_path):
    executed(tokens, tmp_path / "run", training__total_steps=40)
    (problem,) = [e["problem"] for e in events(tmp_path / "run", "warning") if "source" in e["problem"]]
    assert problem.startswith("source code is read 4.44 times by the end of the schedule: past 4 a model learns")
    with pytest.raises(ConfigError, match=r"data.sources: code would be read 4\.44 times .* its max_passes is 4:"):
        prepare(RunRequest(tokens, tmp_path / "n", mixed(WEB, CODE | {"max_passes": 4}, training__total_steps=40)), 1)
    meant = mixed(WEB, CODE | {"max_passes": 4.5}, training__total_steps=40)
    prepared = prepare(RunRequest(tokens, tmp_path / "n", meant), 1)
    assert [*many_passes(passes_at_end(prepared.config, prepared.order, tmp_path / "n"))] == []


def test_other_weights_or_another_dataset_make_another_run(tokens, tmp_path):
    executed(tokens, tmp_path / "run", 1)
    with pytest.raises(
        ConfigError, match=r"is another run: recipe\.data\.sources\.1\.weight was 0\.25, now 0\.5: name"
    ):
        prepare(RunRequest(tokens, tmp_path / "run", mixed(WEB, CODE | {"weight": 0.5})), 1)
    shutil.copytree(tokens, tmp_path / "tokens")
    write_tokens(tmp_path / "tokens" / "code", [[FIRST_OF_CODE] * 300], vocab_size=64)
    with pytest.raises(ConfigError, match=r"identity|sources\.code was"):
        prepare(RunRequest(tmp_path / "tokens", tmp_path / "run", mixed()), 1)


def test_a_run_may_go_on_with_another_number_of_passes_allowed(tokens, tmp_path):
    limited = WEB, CODE | {"max_passes": 0.5}
    execute(prepare(RunRequest(tokens, tmp_path / "run", mixed(*limited)), 1), CPU, unasked())
    longer = {"training__total_steps": 8, "optimizer__schedule": "constant"}
    with pytest.raises(ConfigError, match=r"code would be read 0\.89 times .* or raise max_passes"):
        prepare(RunRequest(tokens, tmp_path / "n", mixed(*limited, **longer)), 1)
    more = mixed(WEB, CODE | {"max_passes": 1})
    assert prepare(RunRequest(tokens, tmp_path / "run", more), 1).config.data == more.data


def test_a_mixture_cannot_go_on_at_another_length(tokens, tmp_path):
    units = {"data__shuffle_length": 64, "training__total_steps": 6}
    executed(tokens, tmp_path / "run", 2, **units)
    longer = mixed(**units, data__sequence_length=32, data__validation_chunks=4)
    with pytest.raises(ConfigError, match=r"the sources take turns by sequences, here of 16"):
        prepare(RunRequest(tokens, tmp_path / "run", longer), 1)


@pytest.mark.parametrize(
    ("sources", "changes", "error", "message"),
    [
        ((WEB, {"name": "news", "weight": 1.0}), {}, FormatError, "news not found: a token dataset is wanted"),
        (
            (WEB, CODE),
            {"data__validation_chunks": 16},
            ConfigError,
            "code has 13 chunks of 16, of which data.validation_chunks reserves 16: one must be left to train on",
        ),
    ],
)
def test_sources_that_cannot_be_read_are_refused(tokens, tmp_path, sources, changes, error, message):
    with pytest.raises(error) as raised:
        prepare(RunRequest(tokens, tmp_path / "run", mixed(*sources, **changes)), 1)
    assert message in str(raised.value)


def test_sources_of_two_tokenizers_are_refused(tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    other_tokenizer(tmp_path / "tokens" / "code")
    with pytest.raises(FormatError, match=r"code has tokenizer \w{12}, .*web has \w{12}: sources of one mixture have"):
        prepare(RunRequest(tmp_path / "tokens", tmp_path / "run", mixed()), 1)


def other_tokenizer(directory):
    """As if the dataset had been made with another one."""
    index = read_index(directory)
    (directory / INDEX_NAME).unlink()
    write_index(directory, replace(index, tokenizer=replace(index.tokenizer, sha256="ab" * 32)))
