"""What `report` says of a run, on a terminal, as JSON and as a picture."""

import io
import json
import sys

import numpy as np
import pytest

from shared.command import run_command
from shared.errors import FormatError
from shared.format import write_index
from shared.storage import write_sealed
from tests.report_runs import BEGAN, event, start, step, steps, write_run
from tests.train_helpers import plain, random_tokens, recipe, write_tokens
from train.commands import COMMANDS
from train.curves import MOST_POINTS, PLOTS, curves, extremes
from train.loss_plot import PLOT_NAME, draw_losses
from train.recorded import read_run
from train.report import BLOCKS, PLAIN_BLOCKS, report, sparkline
from train.study import study_all

FINISHED = {"step": 5, "reason": "all steps are done"}


def run_with(directory, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "metrics.jsonl").write_text(text)
    return directory


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def losses(number, **validation):
    return [{"step": i, "tokens": 100 * i, "loss": 5.0 / i} for i in range(1, number)] + [
        {"step": number, "tokens": 100 * number, "loss": 5.0 / number, **validation}
    ]


def finished(directory, **changes):
    """A run of five steps, of which the last was validated."""
    records = [{**step(r["step"]), **r} for r in losses(5, validation_loss=1.5, validation_s=0.5)]
    return write_run(directory, records, [start(5), event(11, "finished", **FINISHED)], **changes)


# the picture by matplotlib


def drawn(run):
    return draw_losses(read_run(run), run)


@pytest.mark.parametrize("validation", [{}, {"validation_loss": 1.5}])
def test_the_plot_is_a_png_in_the_run(tmp_path, validation):
    pytest.importorskip("matplotlib")
    assert drawn(run_with(tmp_path, losses(5, **validation))) == tmp_path / PLOT_NAME
    assert png_size(tmp_path / PLOT_NAME) == (960, 540)


def test_a_validation_loss_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    pictures = []
    for validation in ({}, {"validation_loss": 1.5}):
        drawn(run_with(tmp_path, losses(5, **validation)))
        pictures.append((tmp_path / PLOT_NAME).read_bytes())
    assert pictures[0] != pictures[1]


def test_a_run_that_is_being_written_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run_with(tmp_path, losses(3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "to')
    assert drawn(tmp_path) == tmp_path / PLOT_NAME


def test_a_run_without_steps_is_not_drawn(tmp_path):
    assert drawn(run_with(tmp_path, [])) is None
    assert not (tmp_path / PLOT_NAME).exists()


# a few lines


def test_a_report_says_where_a_run_began_and_where_it_is(tmp_path):
    run = finished(tmp_path / "run")
    assert report([run]).splitlines() == [
        f"run         {run}",
        "state       finished: all steps are done",
        "steps       5 of 100, 500 tokens",
        "loss        5.0000 at step 1 -> 1.0000 at step 5",
        f"            {sparkline(np.array([5, 5 / 2, 5 / 3, 5 / 4, 1]), 60, BLOCKS)}",
        "validation  1.5000 at step 5",
        "speed       100 tokens/s, mfu 50% (medians)",
        "time        11 s in 1 start: setup 45.5%, training 40.9%, data 4.5%, validation 4.5%",
        "digest      d5",
        f"page        {run / 'report.html'}",
    ]
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in run.iterdir()) == ["events.jsonl", "metrics.jsonl", "report.html", "run.json"]


def test_a_terminal_without_blocks_gets_letters(tmp_path, monkeypatch):
    run = finished(tmp_path / "run")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert report([run]).isascii()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert not report([run]).isascii()
    monkeypatch.setenv("TERM", "dumb")
    assert report([run]).isascii()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([3.0, 3.0], "__"),
        ([8.0, 1.0], "@_"),
        ([1.0, np.nan, 8.0], "_@"),
        (np.repeat([1.0, 8.0], 600), "_" * 30 + "@" * 30),
    ],
)
def test_a_sparkline_is_as_high_as_the_means_of_its_values(values, line):
    assert sparkline(np.array(values, np.float64), 60, PLAIN_BLOCKS) == line


def test_what_a_run_says_cannot_command_a_terminal(tmp_path):
    told = start(5, host="\x1b[2J", layout="\x9b31m")
    run = write_run(tmp_path / "run\x1b]0;x\x07", steps(1, 2), [told, event(9, "stopped", reason="\x1b[2J\u202e")])
    assert "\\x1b[2J\\u202e" in report([run])
    assert not set("\x1b\x07\x9b\u202e") & set(report([run]))
    assert "\x1b" not in report([run], as_json=True)


# any run


def test_a_run_that_died_has_no_steps_or_was_just_made_is_told_of(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "metrics.jsonl").write_text("")
    assert "state       no start is told" in report([tmp_path / "new"])
    waiting = write_run(tmp_path / "waiting", [], [start(5)])
    assert report([waiting]).splitlines()[1:3] == [
        "state       not told: it was killed, or its machine lost",
        "steps       0 of 100, 0 tokens",
    ]
    assert "No step is done yet." in (waiting / "report.html").read_text()
    torn = write_run(tmp_path / "torn", [*steps(1, 3), '{"step": 4, "lo'], [start(5), '{"time": 1'])
    (torn / "state.json").write_text('{"state": "running"')
    said = report([torn])
    assert "steps       3 of 100, 300 tokens" in said
    assert "problem     metrics.jsonl ends in the middle of a line, which is left out" in said
    assert f"problem     {torn / 'state.json'} is not valid JSON" in said
    assert "is not valid JSON" in (torn / "report.html").read_text()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        FormatError, match=r"is not a run \(no run.json, no metrics.jsonl\): name the directory of a run$"
    ):
        report([tmp_path])


MISTAKES = {
    "no run": (["{tmp}/none"], "none is not a run (no run.json, no metrics.jsonl): name the directory of a run"),
    "no second run": (["{run}", "{tmp}/none"], "none is not a run"),
    "no recipe": (["{run}", "--recipe", "tin"], "recipe 'tin' not found: one of 125m, 1b, argonne-2.0, tiny"),
    "no room for the page": (["{run}", "--out", "{tmp}/none/page.html"], "none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, capsys, mistake):
    arguments, message = MISTAKES[mistake]
    run = finished(tmp_path / "run")
    assert run_command("train", COMMANDS, ["report", *(a.format(tmp=tmp_path, run=run) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_page_is_where_it_was_asked_for(tmp_path, capsys):
    run, other = finished(tmp_path / "run"), finished(tmp_path / "other" / "run")
    for arguments, page in (
        ([run, "--out", tmp_path / "page.html"], tmp_path / "page.html"),
        ([run, other], run / "compared.html"),
        ([run, "--json", "--out", tmp_path / "page2.html"], tmp_path / "page2.html"),
    ):
        assert run_command("train", COMMANDS, ["report", *map(str, arguments)]) == 0
        assert page.is_file()
    assert not (run / "report.html").exists()
    assert f"{run}: training" in (run / "compared.html").read_text()  # two of one name are told by their paths
    capsys.readouterr()


def test_png_draws_the_losses_too(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    run = finished(tmp_path / "run")
    assert run_command("train", COMMANDS, ["report", str(run), "--png"]) == 0
    assert png_size(run / PLOT_NAME) == (960, 540)
    assert f"plot        {run / PLOT_NAME}\n" in capsys.readouterr().out


# figures


def test_json_has_all_figures(tmp_path, capsys):
    run = finished(tmp_path / "run")
    assert run_command("train", COMMANDS, ["report", str(run), "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["runs"]
    assert not (run / "report.html").exists()
    assert (figures["steps"], figures["tokens"], figures["data_digest"]) == (5, 500, "d5")
    assert figures["loss"] == {"first": 5.0, "last": 1.0, "least": 1.0, "step": 5}
    assert figures["total_s"] == sum(figures["seconds"].values()) == 11.0
    assert figures["starts"] == [
        {
            "time": BEGAN + 5,
            "setup_s": 5.0,
            "machine": "node1, 2 ranks",
            "layout": "fsdp over 2 ranks",
            "first_step": 1,
            "steps": 5,
            "done_again": None,
            "end": BEGAN + 11,
            "ended": "finished: all steps are done",
            "changes": [],
        }
    ]


def test_the_documents_of_a_spike_are_told_by_file_and_row(tmp_path):
    documents = [{"source": "b.parquet", "rows": [7, 7]}, *({"source": "a", "rows": [n, n + 1]} for n in (5, 0, 1))]
    events = [start(5), event(9, "spike", step=3, problem="step 3: loss", documents=[*documents, "odd", {"rows": 1}])]
    (one,) = study_all([write_run(tmp_path / "run", steps(1, 4), events)], None, BEGAN + 20)
    (spike,) = one.notable()
    assert (spike["kind"], spike["step"]) == ("spike", 3)
    assert spike["documents"] == {"a": [(0, 2), (5, 6)], "b.parquet": [(7, 7)]}


def test_the_recipe_is_compared_with_the_nearest_shipped_one_or_the_one_named(tmp_path):
    mine = {**plain(recipe()), "training": {"total_steps": 7}}
    run = write_run(tmp_path / "run", [], [], mine)
    (tmp_path / "my.toml").write_text("[training]\ntotal_steps = 9\n")
    (one,) = study_all([run], None, BEGAN)
    assert one.recipe_name == "tiny"
    (one,) = study_all([run], str(tmp_path / "my.toml"), BEGAN)
    told = {d.name: (d.shipped, d.here) for d in one.differences}
    assert told["training.total_steps"] == (9, 7)
    assert told["model.hidden_size"][1] == 32
    assert "optimizer.beta1" not in told


def test_the_hashes_lead_from_input_to_checkpoint_and_a_break_is_told(tmp_path):
    tokens = tmp_path / "tokens"
    index = write_tokens(tokens, [random_tokens(400)], vocab_size=64)
    run = write_run(tmp_path / "run", steps(1, 4), [start(5, reads={"tokens": str(tokens)})], plain(recipe()))
    (run / "tokenizer.json").write_text("{}")
    identity = {"recipe": plain(recipe()), "dataset": index.fingerprint, "tokenizer": index.tokenizer.sha256}
    write_sealed(run / "run.json", {"identity": identity, "total_steps": 4})
    checkpoint = run / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)

    def links(**manifest):
        write_sealed(checkpoint / "MANIFEST.json", {**identity, "step": 3, "data_digest": "d3", **manifest})
        return {link.what: link.fits for link in study_all([run], None, BEGAN)[0].links}

    newest = "newest checkpoint step-00000003"
    whole = {"inputs": True, "dataset": True, "tokenizer": True, "recipe": None, newest: True}
    assert links() == whole
    assert links(data_digest="d4") == {**whole, newest: False}
    assert links(dataset="another") == {**whole, newest: False}
    (run / "tokenizer.json").write_text("{ }")
    assert links() == {**whole, "tokenizer": False}
    (run / "tokenizer.json").write_text("{}")
    write_index(tokens, write_tokens(tmp_path / "others", [random_tokens(500)], vocab_size=64))
    assert links() == {name: fits if name != "dataset" else None for name, fits in whole.items() if name != "inputs"}
    (checkpoint / "MANIFEST.json").write_text("{")
    assert study_all([run], None, BEGAN)[0].links[-1].fits is False


# curves


@pytest.mark.parametrize("number", [1, 2, MOST_POINTS, MOST_POINTS + 1, 12_345])
def test_few_points_keep_the_least_and_the_greatest_of_every_stretch(number):
    values = np.random.default_rng(number).normal(size=number)
    kept = extremes(values, MOST_POINTS)
    assert len(kept) <= MOST_POINTS
    assert np.array_equal(kept, np.unique(kept))
    assert {0, number - 1, values.argmin(), values.argmax()} <= set(kept.tolist())
    for stretch in np.array_split(np.arange(number), min(number, 100)):
        inside = values[kept[(kept >= stretch[0]) & (kept <= stretch[-1])]]
        if number > MOST_POINTS:
            assert inside.max() - inside.min() > 0.5 * np.ptp(values[stretch])


def test_rates_that_are_the_same_are_one_curve(tmp_path):
    plot = next(plot for plot in PLOTS if plot.name == "learning-rate")
    same = read_run(write_run(tmp_path / "same", steps(1, 3), []))
    other = read_run(write_run(tmp_path / "other", [step(n, lr_embeddings=2e-3) for n in (1, 2)], []))
    assert [curve.label for curve in curves(same, plot)] == ["matrices, embeddings, vectors"]
    assert [curve.label for curve in curves(other, plot)] == ["matrices, vectors", "embeddings"]
