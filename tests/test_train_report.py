import json

import pytest

from shared.errors import FormatError
from train.report import PLOT_NAME, plot_losses, report


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


@pytest.mark.parametrize("validation", [{}, {"validation_loss": 1.5}])
def test_the_plot_is_a_png_in_the_run(tmp_path, validation):
    pytest.importorskip("matplotlib")
    assert plot_losses(run_with(tmp_path, losses(5, **validation))) == tmp_path / PLOT_NAME
    assert png_size(tmp_path / PLOT_NAME) == (960, 540)


def test_a_validation_loss_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = []
    for validation in ({}, {"validation_loss": 1.5}):
        plot_losses(run_with(tmp_path, losses(5, **validation)))
        drawn.append((tmp_path / PLOT_NAME).read_bytes())
    assert drawn[0] != drawn[1]


def test_a_run_that_is_being_written_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    run_with(tmp_path, losses(3))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "to')
    assert plot_losses(tmp_path) == tmp_path / PLOT_NAME


def test_a_report_says_where_a_run_began_and_where_it_is(tmp_path):
    pytest.importorskip("matplotlib")
    measured = {"tokens_per_s": 1000.0, "mfu": 0.5, "data_digest": "d1"}
    records = [{**record, **measured} for record in losses(5, validation_loss=1.5)]
    assert report(run_with(tmp_path, records)).splitlines() == [
        "steps       5, 500 tokens",
        "loss        5.0000 at step 1 -> 1.0000 at step 5",
        "validation  1.5000 at step 5",
        "speed       1,000 tokens/s, mfu 50% (medians)",
        "digest      d1",
        f"plot        {tmp_path / PLOT_NAME}",
    ]


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"has no metrics.jsonl: name the directory of a run$"):
        plot_losses(tmp_path)


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"has no steps yet: wait for the first one$"):
        plot_losses(run_with(tmp_path, []))
