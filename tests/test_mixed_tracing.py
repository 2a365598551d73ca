"""`python -m train trace` of two stages over two sources, as people and programs meet it."""

import json
from types import SimpleNamespace

import pytest
import torch

import train.run
from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from tests.helpers import dataset_rows, named_rows, plain_tokenizer, write_named
from tests.train_helpers import group_of_one, recipe, unasked
from train.commands import main
from train.preflight import prepare
from train.request import RunRequest
from train.run import execute

SOURCES = [{"name": "web", "weight": 0.75}, {"name": "code", "weight": 0.25}]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_path):
    """Two datasets of files of one name, a run on the first, and one begun from that on both."""
    directory = tmp_path_factory.mktemp("mixed-tracing")
    for name, first in (("web", 0), ("code", 200)):
        (directory / "data" / name).mkdir(parents=True)
        write_named(directory / "data" / name / "a.parquet", named_rows(first, 100), 20)
        settings = BuildSettings(16, "text", 2000)
        build(
            str(directory / "data" / name), directory / "two" / name, settings, TokenizerSettings(str(tokenizer_path))
        )
    run(directory, "first", directory / "two/web", None)
    run(directory, "second", directory / "two", directory / "first", data__sources=SOURCES)
    return SimpleNamespace(run=directory / "second", tokens=directory / "two", data=directory / "data")


def run(directory, name, tokens, begin_from, **changes):
    config = recipe(model__vocab_size=2048, training__total_steps=8, checkpoint__every=1, checkpoint__keep=9, **changes)
    with group_of_one(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.run, "measured_peak_flops", lambda device, dtype: 1e9)
        request = RunRequest(tokens, directory / name, config, 3, begin_from=begin_from)
        execute(prepare(request, 1), torch.device("cpu"), unasked())


def told(capsys, made, *arguments, data=None):
    capsys.readouterr()
    where = ["--run", str(made.run), "--data", str(data or made.data)]
    assert main(["trace", *where, *map(str, arguments)], None) == 0
    return capsys.readouterr().out


def as_json(capsys, made, *arguments, data=None):
    return [json.loads(line) for line in told(capsys, made, *arguments, "--json", data=data).splitlines()]


def test_a_step_tells_of_each_document_its_source_text_and_loss(made, capsys):
    (step,) = as_json(capsys, made, "--step", 2, "--text", "--losses")
    texts = {
        (f"{name}/{path}", row): ids for name in ("web", "code") for path, row, ids in dataset_rows(made.tokens / name)
    }
    decode = plain_tokenizer(made.tokens / "web").decode
    documents = [document for chunk in step["chunks"] for document in chunk["documents"]]
    assert {document["source"] for document in documents} == {"web/a.parquet", "code/a.parquet"}
    for document in documents:
        ids = texts[document["source"], document["row"]][document["start"] : document["stop"]]
        assert document["text"] == decode(ids, skip_special_tokens=False)
        assert document["id"] == f"<urn:{document['row'] + 200 * (document['source'][:4] == 'code')}>"
        assert len(document["losses"]) == len(ids)
    assert step["checkpoint"]["step"] == 1
    assert step["checkpoint_loss"] == pytest.approx(step["loss"], abs=1e-5)
    shown = told(capsys, made, "--step", 2)
    assert all(f"  {document['source']}:{document['row']}  tokens" in shown for document in documents)


def test_a_document_is_found_in_the_source_that_has_it(made, capsys):
    steps = as_json(capsys, made, "--step", "1..8")
    seen = [
        (step["step"], document["source"], document["row"])
        for step in steps
        for chunk in step["chunks"]
        for document in chunk["documents"]
    ]
    row = next(row for _, source, row in seen if source == "code/a.parquet")
    (found,) = as_json(capsys, made, "--doc", f"w{200 + row}w")
    assert (found["source"], found["row"], found["id"]) == ("code/a.parquet", row, f"<urn:{200 + row}>")
    wanted = {step for step, *document in seen if document == ["code/a.parquet", row]}
    assert {sighting["step"] for sighting in found["sightings"]} == wanted
    for data in (made.data, made.data / "code"):
        assert as_json(capsys, made, "--doc", f"code/a.parquet:{row}", data=data) == [found]


def test_the_run_that_it_began_from_is_named(made, capsys):
    (step,) = as_json(capsys, made, "--step", 1)
    before = made.run.with_name("first")
    assert step["beginning"] == {"run": str(before), "step": 3}
    line = f"this run began from step 3 of {before}: trace --run {before} tells "
    assert f"\n{line}what was read before that\n" in told(capsys, made, "--step", 1)
    assert f"\n{line}whether it was seen before that\n" in told(capsys, made, "--doc", "web/a.parquet:1")
