"""`python -m train trace` as people and programs meet it, on a run over a dataset made of real files."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

import train.run
from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from shared.format import Selection, read_index
from shared.storage import read_sealed, write_sealed
from tests.helpers import dataset_rows, named_rows, plain_tokenizer, write_named
from tests.train_helpers import group_of_one, recipe, unasked
from train.commands import main
from train.preflight import prepare
from train.request import RunRequest
from train.run import execute
from train.trace_lines import problem_lines

SPLIT = {"data__validation": "split", "data__validation_chunks": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_path):
    """A dataset with a validation split, and a run that has done 3 of its 8 steps."""
    directory = tmp_path_factory.mktemp("tracing")
    (directory / "web").mkdir()
    write_named(directory / "web/a.parquet", named_rows(0, 100), 20)
    settings = BuildSettings(16, "text", 2000, selection=Selection(validation_share=0.2))
    build(str(directory / "web"), directory / "web-tokens", settings, TokenizerSettings(str(tokenizer_path)))
    config = recipe(model__vocab_size=2048, training__total_steps=8, **SPLIT)
    with group_of_one(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.run, "measured_peak_flops", lambda device, dtype: 1e9)
        request = RunRequest(directory / "web-tokens", directory / "run", config, 3)
        execute(prepare(request, 1), torch.device("cpu"), unasked())
    return SimpleNamespace(directory=directory, run=directory / "run", tokens=directory / "web-tokens")


@pytest.fixture
def moved(made, tmp_path):
    """A copy of the run that nobody else reads; its dataset stays where it is."""
    return shutil.copytree(made.run, tmp_path / "run")


def told(capsys, *arguments):
    capsys.readouterr()
    assert main(["trace", *map(str, arguments)], None) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(["trace", *map(str, arguments)], None) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err


def as_json(capsys, *arguments):
    return [json.loads(line) for line in told(capsys, *arguments, "--json").splitlines()]


def test_a_step_is_told_with_what_the_inputs_say_and_the_text_that_was_seen(made, capsys):
    (step,) = as_json(capsys, "--run", made.run, "--step", 2, "--text")
    assert (step["state"], step["learned"], len(step["chunks"])) == ("done", True, 4)
    rows = {row: ids for _, row, ids in dataset_rows(made.tokens)}
    for chunk in step["chunks"]:
        assert chunk["ranks"] == [0]
        for part in chunk["documents"]:
            row, ids = named_rows(part["row"], 1)[0], rows[part["row"]]
            assert {name: part[name] for name in ("id", "url", "date")} == {
                name: row[name] for name in ("id", "url", "date")
            }
            decode = plain_tokenizer(made.tokens).decode
            assert part["text"] == decode(ids[part["start"] : part["stop"]], skip_special_tokens=False)
    assert [chunk["microbatch"] for chunk in step["chunks"]] == [0, 0, 1, 1]


def test_what_people_are_told_has_the_same_and_commands_no_terminal(made, capsys):
    every = as_json(capsys, "--run", made.run, "--step", "1..8")
    assert [(step["step"], step["state"]) for step in every] == [
        (n, "done" if n <= 3 else "to come") for n in range(1, 9)
    ]
    shown = told(capsys, "--run", made.run, "--step", "1..8", "--text")
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert shown.count("has not happened: this is what it will read if nothing changes") == 5
    for step in every:
        for chunk in step["chunks"]:
            assert f"position {chunk['position']} (epoch {chunk['epoch']}" in shown
            for part in chunk["documents"]:
                assert f"a.parquet:{part['row']}  tokens {part['start']} to {part['stop']} of" in shown
    assert r"https://example.org/\x1b[2J\u202e" in shown


def test_a_document_is_told_with_its_steps_whichever_way_it_is_named(made, capsys):
    (step,) = as_json(capsys, "--run", made.run, "--step", 2)
    part = step["chunks"][1]["documents"][-1]
    row = part["row"]
    found = [
        as_json(capsys, "--run", made.run, "--doc", name)[0] for name in (f"a.parquet:{row}", part["id"], f"w{row}w")
    ]
    assert found[0] == found[1] == found[2]
    assert 2 in [sighting["step"] for sighting in found[0]["sightings"] if sighting["state"] == "done"]
    shown = told(capsys, "--run", made.run, "--doc", part["url"], "--text")
    assert f"document a.parquet:{row}  {part['num_tokens']} tokens" in shown
    assert "of 1 epoch by step 3 of 8\nnot in the validation range\n" in shown
    assert f"the word w{row}w" in shown


def test_each_of_ten_documents_that_have_a_text_is_told_as_it_is_alone(made, capsys):
    found = as_json(capsys, "--run", made.run, "--doc", "number 9")
    assert [document["row"] for document in found] == [9, 90, 91, 92, 93, 95, 96, 97, 98, 99]
    assert [found[3]] == as_json(capsys, "--run", made.run, "--doc", "a.parquet:92")
    shown = told(capsys, "--run", made.run, "--doc", "number 9")
    assert re.findall(r"^document a.parquet:(\d+)", shown, re.MULTILINE) == [str(d["row"]) for d in found]


def test_a_document_that_was_kept_apart_is_validated_on_and_never_seen(made, capsys):
    apart = [row for _, row, ids in dataset_rows(made.tokens / "validation") if ids]
    assert apart
    found = [as_json(capsys, "--run", made.run, "--doc", f"a.parquet:{row}")[0] for row in (apart[0], apart[-1])]
    assert {(len(document["sightings"]), document["validation"]["is_kept_apart"]) for document in found} == {(0, True)}
    row = next(document["row"] for document in found if document["validation"]["validated"])
    shown = told(capsys, "--run", made.run, "--doc", f"a.parquet:{row}")
    said = r"no step sees it: it is of the validation split\nvalidated on: \d chunks? of it, which no step sees\n"
    assert re.search(said, shown)
    (row,) = (document["row"] for document in found if not document["validation"]["validated"])
    shown = told(capsys, "--run", made.run, "--doc", f"a.parquet:{row}", "--text")
    assert "no step sees it: it is of the validation split\nnone of it is validated on\n" in shown
    assert "|" not in shown
    assert "no step sees it: it was left out of the dataset" in told(capsys, "--run", made.run, "--doc", "a.parquet:3")


def test_losses_are_told_of_documents_and_shown_as_colours(made, capsys, monkeypatch):
    (step,) = as_json(capsys, "--run", made.run, "--step", 2, "--losses")
    assert step["checkpoint"] == {"path": str(made.run / "checkpoints/step-00000003"), "step": 3}
    parts = [part for chunk in step["chunks"] for part in chunk["documents"]]
    decode = plain_tokenizer(made.tokens).decode
    for part in parts:
        assert len(part["losses"]) == len(part["ids"]) == part["stop"] - part["start"]
        assert "".join(text for text, _ in part["pieces"]) == decode(part["ids"], skip_special_tokens=False)
    every = [loss for part in parts for loss in part["losses"] if loss is not None]
    assert step["checkpoint_loss"] == pytest.approx(sum(every) / len(every))
    asked = ["--run", made.run, "--step", 2, "--losses"]
    shown = told(capsys, *asked)
    assert f"by the model of step 3 ({made.run}" in shown
    assert f"  loss {parts[0]['loss']:.4f}" in shown
    assert "\x1b" not in shown
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = told(capsys, *asked)
    assert "\x1b[33m" in coloured  # yellow: a model that knows nothing has a loss of 7 to 8
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == shown
    monkeypatch.setenv("NO_COLOR", "1")
    assert told(capsys, *asked) == shown
    assert "--losses are those of a step: give --step" in refused(capsys, "--run", made.run, "--doc", "x", "--losses")


def test_what_is_not_there_is_one_line(made, capsys, tmp_path):
    run = made.run
    for arguments, message in [
        (
            ["--run", tmp_path, "--step", 1],
            f"{tmp_path} is not a run (no run.json): name the directory of one that was",
        ),
        (["--run", run], "either --step or --doc is wanted: see python -m train trace --help"),
        (["--run", run, "--step", 1, "--doc", "x"], "either --step or --doc is wanted"),
        (["--run", run, "--step", 9], f"step 9 is none of {run}: 1 to 8 is wanted"),
        (["--run", run, "--step", 0], f"step 0 is none of {run}: 1 to 8 is wanted"),
        (["--run", run, "--step", "3..2"], "--step is '3..2': a step or a range of them is wanted, as in 17 or 17..20"),
        (["--run", run, "--step", "9" * 5000], "a step or a range of them is wanted, as in 17 or 17..20"),
        (["--run", run, "--step", "1..9"], f"step 9 is none of {run}: 1 to 8 is wanted"),
        (["--run", run, "--doc", ""], "'' names no document: an id, a url or a piece of its text is wanted"),
        (["--run", run, "--doc", "\udcff"], r"'\udcff' names no document: "),  # as argv has a byte that is no UTF-8
        (["--run", run, "--doc", "nowhere\x1b"], r"has the id or url 'nowhere\x1b', or that in its text"),
        (
            ["--run", run, "--doc", "says the word"],
            " documents: give a longer text, an id, or one of them: a.parquet:0, ",
        ),
        (
            ["--run", run, "--doc", "a.parquet:100"],
            "a.parquet has no row 100 in the dataset: it has 100, counted from 0",
        ),
        (["--run", run, "--step", 1, "--tokens", tmp_path / "x"], f"{tmp_path / 'x'} is gone, {run} was trained on it"),
        (["--run", run, "--step", 1, "--tokens", made.tokens / "validation"], f"{run} was trained on dataset "),
        (
            ["--run", run, "--step", 1, "--data", tmp_path / "x"],
            "x not found: a directory, a glob pattern or a *.parquet",
        ),
    ]:
        said = refused(capsys, *arguments)
        assert message in said, arguments
        assert said.count("\n") == 1


def test_without_its_inputs_a_document_is_told_by_its_row(made, capsys, tmp_path):
    (tmp_path / "b.parquet").write_bytes(b"")
    shown = told(capsys, "--run", made.run, "--step", 1, "--data", tmp_path)
    assert f"note: a.parquet is not in {tmp_path}, so its ids, urls and dates are not told\n" in shown
    assert "https://" not in shown
    assert "a.parquet:" in shown


def test_a_reason_that_many_files_share_is_told_once():
    why = "is not found: give the directory of the inputs with --data"
    documents = [{"source": f"{name}.parquet", "problem": f"{name}.parquet {why}"} for name in "abcab"]
    documents += [{"source": "d.parquet", "problem": "d.parquet is not what it was when the dataset was made"}]
    told = [*problem_lines([{"chunks": [{"documents": documents}]}])]
    ends = [
        "so its ids, urls and dates are not told" + also
        for also in (", nor are those of 2 other files for the same reason", "")
    ]
    assert told == [f"note: a.parquet {why}, {ends[0]}\n", f"note: {documents[-1]['problem']}, {ends[1]}\n"]


def edited(run, change):
    """The events of a run, changed."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    change(lines)
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def forget(lines):
    """As a release before this one wrote a start."""
    del lines[0]["reads"]


def test_a_run_of_an_earlier_release_is_traced_but_for_what_it_did_not_tell(made, moved, capsys):
    wanted = as_json(capsys, "--run", moved, "--step", "1..3")
    edited(moved, forget)
    assert "does not say where its dataset is: give it with --tokens" in refused(capsys, "--run", moved, "--step", 1)
    found = as_json(capsys, "--run", moved, "--step", "1..3", "--tokens", made.tokens)
    assert {chunk[name] for step in found for chunk in step["chunks"] for name in ("dp_rank", "microbatch")} == {None}
    for step in wanted:
        for chunk in step["chunks"]:
            chunk |= {"dp_rank": None, "ranks": None, "microbatch": None}
    assert found == wanted
    shown = told(capsys, "--run", moved, "--step", 1, "--tokens", made.tokens)
    assert "rank and microbatch not told by the start of that step" in shown
    edited(moved, lambda lines: lines.append({"event": "start", "step": 3, "layout": "x"}))
    edited(
        moved, lambda lines: lines.append({"event": "changed", "changes": ["recipe.data.global_batch was 8, now 4"]})
    )
    said = refused(capsys, "--run", moved, "--step", 1, "--tokens", made.tokens)
    assert "it is not known what" in said
    assert "read after step 0: other options of [data] came later, and the release that it was started by" in said
    (moved / "metrics.jsonl").unlink()
    said = refused(capsys, "--run", moved, "--step", 4, "--tokens", made.tokens)
    assert (
        "was after step 3: the release that it was started by did not write it down, and metrics.jsonl has no" in said
    )


def test_events_and_metrics_that_say_different_things_are_refused(moved, capsys):
    edited(moved, lambda lines: lines[0]["reads"].update(cursor=[0, 0, 1]))
    said = refused(capsys, "--run", moved, "--step", 2)
    assert "metrics.jsonl has step 2 end at (0, " in said
    assert "metrics.jsonl has step 3 end at (0, " in refused(capsys, "--run", moved, "--doc", "a.parquet:1")
    assert "(epoch, shard, offset): one of them is not whole, so what it read is not known" in said


def test_a_run_that_has_not_started_or_has_another_packing_is_refused(made, moved, capsys):
    document = read_sealed(moved / "run.json")
    document["identity"]["packing"] = "0" * 64
    write_sealed(moved / "run.json", document)
    assert "was trained with packing 000000000000" in refused(capsys, "--run", moved, "--step", 1)
    (moved / "events.jsonl").write_text("")
    said = refused(capsys, "--run", moved, "--step", 1, "--tokens", made.tokens)
    assert "was not started yet (no start in events.jsonl): wait for its first step" in said


def test_a_validation_split_that_was_made_again_is_refused(made, moved, capsys):
    document = read_sealed(moved / "run.json")
    document["identity"]["validation"] = "0" * 64
    write_sealed(moved / "run.json", document)
    apart = next(row for _, row, ids in dataset_rows(made.tokens / "validation") if ids)
    found = read_index(made.tokens / "validation").fingerprint[:12]
    said = refused(capsys, "--run", moved, "--doc", f"a.parquet:{apart}")
    assert f"validates on dataset 000000000000, {made.tokens / 'validation'} is {found}: put that one back" in said


def test_what_is_shown_of_many_steps_to_come_is_cut(made, moved, capsys):
    document = read_sealed(moved / "run.json")
    write_sealed(moved / "run.json", {**document, "total_steps": 1000})
    (whole,) = as_json(capsys, "--run", moved, "--doc", "a.parquet:1")
    lines = told(capsys, "--run", moved, "--doc", "a.parquet:1").splitlines()
    coming = [sighting for sighting in whole["sightings"] if sighting["state"] == "to come"]
    assert len(coming) > 50
    assert sum("(to come)" in line for line in lines) == 20
    assert f"  ... {len(coming) - 20} more to come (all of them with --json)" in lines
