"""The page of a report, opened from disk in a real Chromium, and that of a real run: skipped, killed, gone on."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from shared.format import write_index
from shared.storage import write_sealed
from tests.browser import chromium, opened
from tests.launch_helpers import run_faulty
from tests.payloads import PAYLOADS
from tests.report_runs import BEGAN, event, start, step, steps, write_run
from tests.train_helpers import plain, random_tokens, recipe, write_tokens
from train.heartbeat import HEARTBEATS_NAME, Heartbeat
from train.patience import Patience
from train.recorded import COLUMNS, Recorded, read_run
from train.report import report
from train.report_page import report_page
from train.starts import starts_of
from train.study import study_all


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """40 steps of a run: a spike with documents, a skip, two starts, a save."""
    records = [step(n, loss=5.0 / n, grad_norm=1.0 + n % 3, data_wait_s=0.001 * n) for n in range(1, 41)]
    records[9] |= {"loss": None, "grad_norm": None}
    records[19] |= {"loss": 9.0, "validation_loss": 0.5, "validation_s": 1.0}
    documents = [{"source": "a.parquet", "rows": [5, 9]}]
    events = [
        start(5),
        event(16, "bad-step", step=10, skipped=True, problem="step 10: not finite", documents=documents),
        event(27, "save", step=20, stall_s=0.1, save_s=1.0),
        event(28, "spike", step=20, problem="step 20: loss 12.0 standard deviations", documents=documents),
        event(30, "restart", step=20, reason="rank 1 was ended by SIGKILL"),
        start(40, 20, undone=1, restarts=1),
        event(61, "finished", step=40, reason="all steps are done"),
    ]
    directory = write_run(tmp_path_factory.mktemp("runs") / "first", records, events, plain(recipe()))
    report([directory])
    return directory


MARKS = [
    "step 0: start: fsdp over 2 ranksS",
    "step 10: bad-step: step 10: not finiteX",
    "step 20: spike: step 20: loss 12.0 standard deviationsP",  # the restart is at the same place
    "step 40: finished: reason all steps are doneE",
]


def readout(visit, name="loss"):
    return visit.page.locator(f"#plot-{name} .readout").inner_text()


def box_of(visit):
    canvas = visit.page.locator("#plot-loss .canvas")
    canvas.scroll_into_view_if_needed()
    return canvas.bounding_box()


def letters(visit, name="loss"):
    return visit.page.locator(f"#plot-{name} .mark text").all_text_contents()


def axis(visit, name="loss"):
    return visit.page.locator(f"#plot-{name} .canvas > svg > text[text-anchor=middle]").all_text_contents()


# reading


def test_the_page_shows_curves_and_marks_and_does_nothing_else(browser, run):
    with opened(browser, run / "report.html") as visit:
        assert visit.page.locator(".plot").count() == 6  # no pipeline, no bubble
        assert letters(visit) == MARKS
        lines = visit.page.locator("#plot-loss path.mark").count()
        assert lines == 5  # kinds
        assert visit.page.locator("#plot-loss .mark.save").count() == 1
        assert visit.misdeeds == []


def test_the_mouse_reads_values_and_zooms(browser, run):
    with opened(browser, run / "report.html") as visit:
        box = box_of(visit)
        middle = box["y"] + box["height"] / 2
        left, right = box["x"] + 60, box["x"] + box["width"] - 12
        visit.page.mouse.move((left + right) / 2, middle)
        assert readout(visit).startswith("step 20: training 9, validation 0.5 | step 20: ")
        assert readout(visit, "grad-norm") == "step 20: gradient norm 3 | " + readout(visit).split(" | ", 1)[1]
        assert visit.page.locator("#plot-loss .cursor.shown").count() == 1
        visit.page.mouse.move((left + right) / 2, box["y"] - 60)
        assert readout(visit) == ""
        before = axis(visit)
        visit.page.mouse.move(left + (right - left) * 0.25, middle)
        visit.page.mouse.down()
        visit.page.mouse.move(left + (right - left) * 0.75, middle, steps=5)
        visit.page.mouse.up()
        assert "0" not in axis(visit)
        assert "20" in axis(visit)
        assert "0" not in axis(visit, "mfu")
        visit.page.mouse.dblclick((left + right) / 2, middle)
        assert axis(visit) == before
        assert visit.misdeeds == []


def test_the_keyboard_reads_values_and_zooms(browser, run):
    with opened(browser, run / "report.html") as visit:
        press = visit.page.keyboard.press
        for _ in range(30):
            press("Tab")
            if visit.page.evaluate("document.activeElement.closest('#plot-loss .canvas') !== null"):
                break
        press("ArrowRight")
        assert readout(visit).startswith("step 1: training 5, ")
        press("ArrowRight")
        assert readout(visit).startswith("step 2: training 2.5, validation 0.5 (at 20)")
        press("Shift+ArrowRight")
        assert readout(visit).startswith("step 13: ")  # step 10 has no loss
        everything = axis(visit)
        press("+")
        press("+")
        assert axis(visit) != everything
        assert visit.page.locator(".reset").is_enabled()
        press("End")
        press("ArrowRight")
        assert readout(visit) != ""  # out of the view: it has moved
        press("Escape")
        assert axis(visit) == everything
        press("Home")
        press("ArrowLeft")
        assert readout(visit).startswith("step 1: ")
        assert visit.misdeeds == []


def test_curves_are_drawn_against_tokens_and_on_either_scale(browser, run):
    with opened(browser, run / "report.html") as visit:
        assert "40" in axis(visit)
        visit.page.get_by_label("tokens", exact=True).check()
        assert "4k" in axis(visit)
        box = box_of(visit)
        visit.page.mouse.move(box["x"] + 60 + (box["width"] - 72) / 2, box["y"] + 100)
        assert readout(visit).startswith("tokens 2,000: training 9")
        first = visit.page.locator("#plot-loss .canvas polyline").first
        before = first.get_attribute("points")
        visit.page.locator("#plot-loss .log").check()
        assert first.get_attribute("points") != before
        assert visit.misdeeds == []


def test_the_page_is_readable_without_scripts(browser, run):
    with opened(browser, run / "report.html", javascript=False) as visit:
        assert letters(visit) == MARKS
        points = visit.page.locator("#plot-loss .canvas polyline").first.get_attribute("points").split()
        assert len(points) == 39
        assert not visit.page.locator(".controls").is_visible()
        text = visit.page.locator("main").inner_text()
        for told in (
            "5.0000 to 0.1250",
            "step 20: loss 12.0",
            "node1, 2 ranks",
            "rank 1 was ended by SIGKILL",
            "d" * 64,
        ):
            assert told in text
        visit.page.get_by_text("its 5 documents").first.click()
        assert visit.page.get_by_text("a.parquet: rows 5 to 9").first.is_visible()
        assert visit.page.get_by_text(f"train trace --run {run} --step 10 --text").is_visible()
        assert visit.misdeeds == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_window(browser, run, dark, width):
    with opened(browser, run / "report.html", dark=dark, width=width) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.page.locator("#plot-loss .canvas > svg").bounding_box()["width"] <= width
        assert visit.misdeeds == []


def test_two_runs_are_in_the_same_plots(browser, run, tmp_path):
    mine = plain(recipe(optimizer__learning_rate=0.5))
    other = write_run(tmp_path / "second", [step(n, loss=4.0 / n) for n in range(1, 21)], [start(5)], mine)
    report([run, other], tmp_path / "two.html")
    with opened(browser, tmp_path / "two.html") as visit:
        keys = visit.page.locator("#plot-loss .key").all_inner_texts()
        assert keys == ["first: training", "first: validation", "second: training"]
        box = box_of(visit)
        visit.page.mouse.move(box["x"] + 60 + (box["width"] - 72) / 4, box["y"] + 100)
        assert readout(visit).startswith("step 10: first: training 0.5556")
        assert "second: training 0.4" in readout(visit)
        between = visit.page.locator("#between tbody tr").all_inner_texts()
        assert between == ["optimizer.learning_rate\t0.01\t0.5"]
        assert visit.misdeeds == []


def of_sources(directory, *names, **identity):
    """A run of 30 steps whose losses tell its sources apart, of which the last is not in every step."""
    losses = [{f"loss_{name}": (4.0 + place) / n**0.3 for place, name in enumerate(names)} for n in range(1, 31)]
    for number, of_step in enumerate(losses):
        if number % 3 == 0:
            of_step.pop(f"loss_{names[-1]}")
    losses[-1] |= {f"validation_loss_{name}": 2.0 + place for place, name in enumerate(names)}
    records = [step(n, loss=4.0 / n**0.3, **of_step) for n, of_step in enumerate(losses, 1)]
    return write_run(
        directory, records, [start(5)], plain(recipe()), {"sources": dict.fromkeys(names, "f"), **identity}
    )


def test_the_loss_of_each_source_is_a_curve_of_one_run_and_of_two(browser, tmp_path):
    begun = {"run": "../runs/first", "step": 30, "optimizer": "kept"}
    one = of_sources(tmp_path / "first", "web", "code", "books")
    other = of_sources(tmp_path / "second", "web", "math", beginning=begun)
    report([one], tmp_path / "one.html")
    report([one, other], tmp_path / "two.html")
    with opened(browser, tmp_path / "one.html") as visit:
        for name in ("source-loss", "source-validation"):
            keys = visit.page.locator(f"#plot-{name} .key")
            assert keys.all_inner_texts() == ["web", "code", "books"]
            assert keys.locator(".dash0").evaluate_all("all => new Set(all.map(x => x.className.baseVal)).size") == 3
        visit.page.locator("#plot-source-loss .canvas").focus()
        visit.page.keyboard.press("ArrowRight")
        assert readout(visit, "source-loss").startswith("step 1: web 4, code 5, ")
        told = f"web, loss {4.0 / 30**0.3:.4f} at step 30, validation 2.0000 at step 30; code, "
        assert visit.page.get_by_text(told).count() == 1
        assert visit.misdeeds == []
    with opened(browser, tmp_path / "two.html") as visit:
        keys = visit.page.locator("#plot-source-loss .key").all_inner_texts()
        assert keys == ["first: web", "first: code", "first: books", "second: web", "second: math"]
        assert visit.page.locator("#plot-source-validation .key").all_inner_texts() == keys
        styles = visit.page.locator("#plot-source-loss .key polyline").evaluate_all(
            "all => all.map(x => x.className.baseVal)"
        )
        assert len(set(styles)) == 5
        assert visit.page.get_by_text("step 30 of ../runs/first, optimizer kept").count() == 1
        assert visit.misdeeds == []


# hostile text


def hostile_run(directory, *, has_sources=False):
    """A run in which every text is a payload."""
    turns = iter(PAYLOADS * 20)
    tokens = directory.parent / "tokens"
    index = write_tokens(tokens, [random_tokens(200)], vocab_size=64)
    source = replace(index.sources[0], path=next(turns), identity=next(turns))
    fingerprint = write_index(tokens, replace(index, sources=[source]))
    events = [start(5, layout=next(turns), host=next(turns), reads={"tokens": str(tokens)})]
    events += [event(6, "changed", step=0, changes=list(PAYLOADS))]
    for number, payload in enumerate(PAYLOADS):
        documents = [{"source": payload, "rows": [number, number]}]
        events += [event(7 + number, "spike", step=number, problem=payload, documents=documents)]
        events += [
            event(7 + number, "warning", problem=payload),
            event(7 + number, payload, step=number, reason=payload),
        ]
        events += [start(8 + number, number, layout=payload, host=payload, ranks=payload)]
    events += [event(999, "stopped", step=9, reason=next(turns))]
    losses = {f"{name}{payload}": 3.0 for name in ("loss_", "validation_loss_") for payload in PAYLOADS}
    records = [step(n, data_digest=PAYLOADS[n % len(PAYLOADS)], **losses) for n in range(1, 100)]
    tree = {"model": dict.fromkeys(PAYLOADS, PAYLOADS[0]), **{payload: payload for payload in PAYLOADS}}
    write_run(directory, records, events, tree, state=next(turns), reason=next(turns), time=BEGAN)
    identity = {"recipe": tree, **{name: next(turns) for name in ("tokenizer", "packing", "validation")}}
    identity |= {"dataset": fingerprint, "beginning": dict.fromkeys(("run", "step", "optimizer"), next(turns))}
    if has_sources:
        identity["sources"] = dict.fromkeys(PAYLOADS, next(turns))
    write_sealed(directory / "run.json", {"identity": identity, "total_steps": PAYLOADS[0]})
    checkpoint = directory / "checkpoints" / "step-00000009"
    checkpoint.mkdir(parents=True)
    write_sealed(checkpoint / "MANIFEST.json", {"step": 9, "dataset": PAYLOADS[0], "files": PAYLOADS[1]})
    return directory


NAMES = [name for name in PAYLOADS if "/" not in name and "\0" not in name and name.isprintable()]


def test_no_text_of_a_run_acts(browser, tmp_path):
    directory = hostile_run(tmp_path / NAMES[0])
    names = [directory.with_name(name) for name in NAMES]
    for number, name in enumerate(names):
        directory = directory.rename(name) if directory != name else directory
        page = tmp_path / f"page{number}.html"
        report([directory], page)
    other = hostile_run(tmp_path / "other" / NAMES[1], has_sources=True)
    report([directory, other], tmp_path / "two.html")
    for page in [*(tmp_path / f"page{number}.html" for number in range(len(names))), tmp_path / "two.html"]:
        is_last = page.name == "two.html"
        with opened(browser, page) as visit:
            assert visit.misdeeds == []
            assert visit.page.locator("script").count() == 2
            assert visit.page.title() != "owned"
            if is_last:
                for details in visit.page.locator("summary").all()[:5]:
                    details.click()
                visit.page.locator("#plot-loss .canvas").hover()
                visit.page.locator("#plot-loss .canvas").focus()
                for key in ("ArrowRight", "+", "Escape", "Tab", "Tab"):
                    visit.page.keyboard.press(key)
                assert visit.misdeeds == []


# large and real


def test_a_page_of_a_million_steps_is_small_and_shows_the_spike(tmp_path):
    number = 1_000_000
    noise = np.random.default_rng(0).normal(size=number)
    columns = dict.fromkeys(COLUMNS, 2.0 + 0.1 * noise)
    columns |= {"step": np.arange(1.0, number + 1), "tokens": 4096.0 * np.arange(1, number + 1)}
    columns["loss"] = columns["loss"].copy()
    columns["loss"][123_456] = 77.0
    events = [event(n, "save", step=100 * n, stall_s=0.1) for n in range(9_000)]
    events += [event(n, "spike", step=100 * n, problem="p" * 200, documents=[]) for n in range(9_000)]
    (one,) = study_all([write_run(tmp_path / "run", steps(1, 2), [])], None, BEGAN)
    big = replace(one, recorded=Recorded(tmp_path / "run", columns, events))
    began = time.perf_counter()
    page = report_page([big, big], BEGAN)
    assert time.perf_counter() - began < 30
    assert len(page) < 2_000_000
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    values = data["plots"][0]["lines"][0]["values"]
    assert len(values) <= 1000
    assert max(values) == 77.0


def test_a_run_that_is_alive_is_told_so(tmp_path):
    run = write_run(tmp_path / "run", steps(1, 2), [event(time.time() - BEGAN - 30, "start", step=0, layout="")])
    (run / HEARTBEATS_NAME).mkdir()
    heartbeat = Heartbeat(run / HEARTBEATS_NAME, 0, Patience(60))
    assert starts_of(read_run(run), time.time())[0].how == "still running"
    assert starts_of(read_run(run), time.time() + 60)[0].how.startswith("not told")
    heartbeat.close()


@pytest.mark.slow
def test_a_real_run_that_was_skipped_killed_and_gone_on_otherwise_is_told_in_full(browser, tmp_path):
    tokens = tmp_path / "tokens"
    write_tokens(tokens, [random_tokens(40_000)], vocab_size=64, rows=[[10] * 4_000])
    changes = {"training__total_steps": 10, "checkpoint__every": 3, "training__validate_every": 5}
    code, _, err = run_faulty("gradient poison 0 3", tokens, tmp_path, "--stop-step", 4, **changes)
    assert code == 0, err
    code, _, err = run_faulty("optimizer kill 1 4", tokens, tmp_path, "--strategy", "pipeline", **changes)
    assert code == 0, err
    run = tmp_path / "run"
    (one,) = study_all([run], None, time.time())
    figures = one.figures()
    assert figures["problems"] == figures["unknown"] == []
    starts = figures["starts"]
    assert [(s["first_step"], s["steps"], s["done_again"]) for s in starts] == [(1, 4, 0), (5, 2, 1), (7, 4, None)]
    assert [s["ended"] for s in starts] == [
        "stopped: --stop-step",
        "died: rank 1 was ended by SIGKILL",
        "finished: all steps are done",
    ]
    assert [s["layout"].split()[0] for s in starts] == ["fsdp", "pipeline", "pipeline"]
    assert all(s["machine"].endswith(", 2 ranks") and 0 < s["setup_s"] < 200 for s in starts)
    assert starts[1]["changes"] == ["recipe.strategy was fsdp, now pipeline"]
    assert {"done twice", "bad steps", "setup", "saves", "validation", "broken off"} <= {
        cause for cause, seconds in figures["seconds"].items() if seconds > 0
    }
    events = one.recorded.events
    assert figures["total_s"] == pytest.approx(events[-1]["time"] - one.starts[0].began_s, abs=0.2)
    (skip,) = [event for event in figures["events"] if event["kind"] == "skip"]
    assert skip["step"] == 3
    assert skip["documents"].keys() == {"a.parquet"}
    links = {link["what"].split(" step")[0]: link["fits"] for link in figures["chain"]}
    assert links["newest checkpoint"] is links["tokenizer"] is True
    report([run])
    with opened(browser, run / "report.html") as visit:
        assert visit.page.locator(".plot").count() == 7
        assert any(text.startswith("step 3: ") and text.endswith("X") for text in letters(visit))
        assert visit.misdeeds == []
