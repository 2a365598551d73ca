"""The page of `inspect`, opened from disk in a real browser."""

import json
import re
import resource
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.__main__ import main
from preprocess.build import build
from preprocess.chunks import read_chunk
from preprocess.config import BuildSettings, TokenizerSettings
from shared.format import FORMAT, VERSION, Index, Shard, Source, TokenizerIdentity, num_chunks, read_index, write_index
from tests.browser import chromium, opened
from tests.helpers import run_cli, write_parquet
from tests.payloads import PAYLOADS

NUM_SHARDS, LENGTH, SHARD_TOKENS = 10_000, 2048, 100_000_001  # 10^12 tokens


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def page_path(small_tokens, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["inspect", str(small_tokens), "--html", str(path), "--sample", "6", "--seed", "3"]) == 0
    return path


@pytest.fixture(scope="module")
def large_index(tmp_path_factory):
    """A dataset of 10^12 tokens of which there is nothing but the index."""
    directory = tmp_path_factory.mktemp("large")
    rows = {"num_rows": 125_000, "num_documents": 125_000, "num_null": 0, "num_empty": 0, "text_bytes": 430_000_000}
    sizes = {"num_tokens": SHARD_TOKENS, "num_chunks": num_chunks(SHARD_TOKENS, LENGTH), "num_padding": 0}
    sums = {"tokens_sha256": "0" * 64, "documents_sha256": "1" * 64}
    shards = [Shard(i // 10, i % 10 * 8, 8, i % 10 * 125_000, **rows, **sizes, **sums) for i in range(NUM_SHARDS)]
    sources = [Source(f"CC-MAIN/{i:05d}.parquet", 2_000_000_000, 1_250_000, "") for i in range(NUM_SHARDS // 10)]
    tokenizer = TokenizerIdentity("2" * 64, 50_257, "<|endoftext|>", 50_256, [])
    write_index(directory, Index(FORMAT, VERSION, LENGTH, "uint16", "text", 1 << 28, tokenizer, sources, shards))
    return directory


def focus(visit, place):
    """Go to a text of tokens by keyboard alone."""
    for _ in range(200):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.className") == "tokens":
            if not place:
                return
            place -= 1
    raise AssertionError("no text of tokens can be reached with Tab")


def test_the_page_asks_for_nothing_and_has_no_error(browser, page_path, small_tokens):
    index = read_index(small_tokens)
    for javascript in (True, False):
        with opened(browser, page_path, javascript=javascript) as visit:
            text = visit.page.locator("main").inner_text()
            facts = (index.fingerprint, f"{index.num_tokens:,}", "uint16", "000_00010.parquet", "not verified")
            for fact in (*facts, "Documents by length", "Never used", "all 400 documents"):
                assert fact in text
            assert visit.page.locator("svg .bar").count() > 5
            assert visit.page.locator("details[id^=chunk-]").count() == 6
            assert visit.page.locator("#query").is_visible() == javascript
            assert visit.misdeeds == []


def test_the_page_is_no_wider_than_a_telephone(browser, page_path):
    with opened(browser, page_path, width=360, height=640) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_is_dark(browser, page_path):
    grounds = []
    for dark in (True, False):
        with opened(browser, page_path, dark=dark) as visit:
            color = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds.append(sum(map(int, re.findall(r"\d+", color)[:3])))
    assert grounds[0] < 100
    assert grounds[1] > 700


def test_the_tokens_of_a_page_are_those_of_its_chunks(browser, page_path, small_tokens):
    with opened(browser, page_path, javascript=False) as visit:
        chunks = visit.page.locator("details[id^=chunk-]")
        for chunk in chunks.all():
            stored = read_chunk(small_tokens, int(chunk.get_attribute("id").removeprefix("chunk-")))
            ids = [int(number) for number in chunk.locator("i").evaluate_all("all => all.map(token => token.title)")]
            assert ids == [number for piece in stored.documents for number in piece.ids]
            for block, piece in zip(chunk.locator(".tokens").all(), stored.documents, strict=True):
                shown = block.evaluate("block => block.textContent")
                assert shown[:40].replace("\\t", "\t") in piece.text or "\\" in shown[:40]
        assert chunks.count() == 6


def test_a_token_tells_its_id_to_the_mouse_and_to_the_keyboard(browser, page_path):
    with opened(browser, page_path) as visit:
        readout = visit.page.locator("#readout")
        assert not readout.is_visible()
        token = visit.page.locator("details[open] .tokens i").nth(4)
        token.hover()
        number = token.get_attribute("title")
        assert readout.inner_text().startswith(f"id {number} ")
        visit.page.mouse.move(0, 0)
        assert not readout.is_visible()
        focus(visit, 0)
        ids = visit.page.evaluate("[...document.activeElement.children].map(token => token.title)")
        assert readout.inner_text().startswith(f"id {ids[0]} ")
        for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", -1), ("Home", 0)):
            visit.page.keyboard.press(key)
            assert readout.inner_text().startswith(f"id {ids[place]} "), key
        visit.page.keyboard.press("Tab")
        assert visit.misdeeds == []


def test_search_finds_every_place_across_tokens_by_keyboard(browser, page_path, small_tokens):
    with opened(browser, page_path) as visit:
        texts = visit.page.locator(".tokens").evaluate_all("all => all.map(block => block.textContent.toLowerCase())")
        word = max(re.findall(r"[a-z]{7,}", " ".join(texts)), key=len)
        visit.page.locator("#query").focus()
        visit.page.keyboard.type(word.upper())
        wanted = sum(text.count(word) for text in texts)
        assert visit.page.locator("#matches").inner_text().startswith(f"{wanted} found in ")
        assert "".join(visit.page.locator(".found").all_inner_texts()).lower().count(word) == wanted
        assert visit.page.locator("details[open] .found").count() == visit.page.locator(".found").count()
        visit.page.keyboard.press("Enter")
        assert visit.page.locator("#matches").inner_text() == f"1 of {wanted} found"
        assert visit.page.locator(".found.current").is_visible()
        visit.page.keyboard.press("Shift+Enter")
        assert visit.page.locator("#matches").inner_text() == f"{wanted} of {wanted} found"
        visit.page.locator("#query").fill(word)
        visit.page.keyboard.press("Shift+Enter")  # back from nowhere is the last
        assert visit.page.locator("#matches").inner_text() == f"{wanted} of {wanted} found"
        visit.page.keyboard.press("Escape")
        assert visit.page.locator(".found").count() == 0
        number = visit.page.locator(".tokens i").first.get_attribute("title")
        visit.page.keyboard.type(f"#{number}")
        assert set(visit.page.locator(".found").evaluate_all("all => all.map(token => token.title)")) == {number}
        visit.page.locator("#next").click()
        visit.page.locator("#query").fill("no such text \u00e9")
        assert visit.page.locator("#matches").inner_text() == "0 found in 0 of these chunks"
        assert visit.misdeeds == []


def test_text_runs_in_its_own_direction_and_its_spaces_are_kept(browser, tmp_path, tokenizer_path):
    arabic = "\u0627\u0644\u0633\u0644\u0627\u0645 \u0639\u0644\u064a\u0643\u0645"
    write_parquet(tmp_path / "in/a.parquet", [arabic, "one two", "a" + " " * 12 + "b"])
    build(str(tmp_path / "in"), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    assert main(["inspect", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    with opened(browser, tmp_path / "page.html") as visit:
        for place, runs_right in ((0, False), (1, True)):
            tokens = visit.page.locator(".tokens").nth(place).locator("i:not(.part):not(.end)").all()
            first, last = (token.bounding_box()["x"] for token in (tokens[0], tokens[-1]))
            assert (first < last) == runs_right
        spaces = visit.page.locator("td .code", has_text="  ").first
        assert spaces.evaluate("cell => getComputedStyle(cell).whiteSpaceCollapse") == "preserve"


def names_of(payloads):
    """File names, some in directories, that are payloads."""
    fit = [text for text in payloads if "\0" not in text and len(text) < 200 and text.isprintable()]
    return [re.sub("/+", "/", f"{i}{text}.parquet") for i, text in enumerate(fit)]


def test_payloads_in_documents_names_and_tokens_do_nothing(browser, tmp_path, capsys):
    names = names_of(PAYLOADS)
    assert len(names) >= 40
    text = [payload.encode(errors="replace").decode() for payload in PAYLOADS]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": text, "url": text, "date": text, "id": text}), path)
    tokens = tmp_path / PAYLOADS[0].replace("/", "_") / "<img src=x onerror=alert(1)>"
    special = tuple(payload for payload in text[:12] if payload.isprintable())
    tokenizer = TokenizerSettings(None, "<script>alert(0)</script>", 300, special_tokens=special)
    build(str(tmp_path / "in"), tokens, BuildSettings(64), tokenizer)
    path = tmp_path / "page.html"
    assert main(["inspect", str(tokens), "--html", str(path), "--sample", "60", "--data", str(tmp_path / "in")]) == 0
    assert "url &lt;script&gt;alert(1)&lt;/script&gt;, date &lt;script&gt;" in path.read_text()
    assert not re.search("[\u202e\u2066\x00\x1b\x9b]", path.read_text())
    for javascript in (True, False):
        with opened(browser, path, javascript=javascript) as visit:
            page = visit.page
            assert page.title() == "<img src=x onerror=alert(1)>"
            assert page.locator("script").count() == 2
            assert page.locator("img, iframe, object, embed, video, form, base, style:not(head style)").count() == 0
            for token in page.locator("details[open] .tokens i").all()[:20]:
                token.hover()
            for _ in range(30):
                page.keyboard.press("Tab")
            if javascript:
                page.locator("#query").fill("<script>alert(1)")
                page.keyboard.press("Enter")
            assert visit.misdeeds == []
    assert "<script" not in capsys.readouterr().err


def with_cpu_seconds(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_cli("preprocess", *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_large_dataset_is_shown_in_two_seconds_of_which_the_files_are_missing(browser, large_index, tmp_path):
    path = tmp_path / "page.html"
    shown = {}
    for form in ([], ["--json"], ["--html", path]):
        done, seconds = with_cpu_seconds("inspect", large_index, *form)
        if seconds >= 2:  # others at work on the same cores make it look slow
            done, seconds = with_cpu_seconds("inspect", large_index, *form)
        assert (done.returncode, done.stderr) == (0, "")
        assert seconds < 2
        shown[str(form[:1])] = done.stdout
    table = " ".join(shown["[]"].split())
    assert "all missing or damaged" in table
    assert "counted nothing: no shard that holds a document can be read" in table
    assert "9,960 more (all of them with --json)" in table
    document = json.loads(shown["['--json']"])
    assert document["totals"]["num_tokens"] == NUM_SHARDS * SHARD_TOKENS
    assert {shard["state"] for shard in document["shards"]} == {"its files are missing"}
    assert len(document["shards"]) == NUM_SHARDS
    assert path.stat().st_size < 1_000_000
    with opened(browser, path) as visit:
        text = visit.page.locator("main").inner_text()
        assert "first and last 200 of 10,000" in text
        assert "09999" in text
        assert "No document could be counted" in text
        assert "No chunk can be read here" in text
        assert visit.misdeeds == []


def test_a_dataset_of_which_a_part_is_missing_is_shown_by_the_rest(small_tokens, tmp_path, capsys):
    tokens = shutil.copytree(small_tokens, tmp_path / "tokens")
    (tokens / "00000.npy").unlink()
    (tokens / "tokenizer.json").unlink()
    data = bytearray((tokens / "00001.npy").read_bytes())
    (tokens / "00001.npy").write_bytes(data[:-2])
    assert main(["inspect", str(tokens), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for told in ("its files are missing", "2 missing or damaged, the others not verified", "tokenizer.json is missing"):
        assert told in page
    assert re.search(r"00001\.npy is [\d,]+ bytes; [\d,]+ are wanted", page)
    assert main(["inspect", str(tokens), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    missing = document["shards"][0]["num_tokens"] + document["shards"][1]["num_tokens"]
    assert document["tokens"]["num_counted"] == document["totals"]["num_tokens"] - missing
    assert not document["tokens"]["is_all"]


def test_documents_are_told_with_url_and_date_as_long_as_their_input_is_what_it_was(tmp_path, tokenizer_path, capsys):
    columns = {"text": ["one two three"] * 40, "date": [f"2026-01-{i % 28 + 1:02d}" for i in range(40)]}
    for name in ("a", "b"):
        path = tmp_path / f"in/{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(
            pa.table({**columns, "url": [f"https://{name}.org/{i}" for i in range(40)]}), path, row_group_size=9
        )
    write_parquet(tmp_path / "in/c.parquet", ["x"], column="text")
    tokens = tmp_path / "out"
    build(str(tmp_path / "in"), tokens, BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    capsys.readouterr()
    last = sum(shard.num_chunks for shard in read_index(tokens).shards) - 1

    def documents(*arguments):
        assert main(["inspect", str(tokens), "--sample", "99", "--json", *map(str, arguments)]) == 0
        return [piece for chunk in json.loads(capsys.readouterr().out) for piece in chunk["documents"]]

    found = documents("--data", tmp_path / "in")
    assert {(piece["source"], piece["row"]) for piece in found} >= {
        ("a.parquet", 0),
        ("b.parquet", 39),
        ("c.parquet", 0),
    }
    for piece in found:
        row = piece["row"]
        if piece["source"] == "c.parquet":
            assert (piece["id"], piece["url"], piece["date"], piece["problem"]) == ("0", None, None, None)
        else:
            assert piece["url"] == f"https://{piece['source'][0]}.org/{row}"
            assert piece["date"] == columns["date"][row]
    assert main(["inspect", str(tokens), "--chunk", str(last), "--data", str(tmp_path / "in")]) == 0
    assert "  from  id 0\n" in capsys.readouterr().out
    shutil.copy(tmp_path / "in/b.parquet", tmp_path / "in/a.parquet")
    (tmp_path / "in/c.parquet").unlink()
    for piece in documents("--data", tmp_path / "in"):
        if piece["source"] == "b.parquet":
            assert piece["url"].startswith("https://b.org/")
        else:
            told = "is not what it was when the dataset was made" if piece["source"] == "a.parquet" else "is not in "
            assert told in piece["problem"]
            assert piece["url"] is None
    assert all("give the directory of the inputs with --data" in piece["problem"] for piece in documents())
    page = tmp_path / "page.html"
    assert main(["inspect", str(tokens), "--html", str(page), "--data", str(tmp_path / "in")]) == 0
    assert "url https://b.org/0, date 2026-01-01" in page.read_text()
    assert "is not what it was when the dataset was made" in page.read_text()
    assert main(["inspect", str(tokens), "--chunk", "0", "--data", str(tmp_path / "no")]) == 2
    assert "no not found: a directory, a glob pattern or a" in capsys.readouterr().err


def test_a_page_of_long_chunks_is_cut_and_says_so(tmp_path, tokenizer_path, real_texts):
    write_parquet(tmp_path / "in/a.parquet", real_texts * 2)
    build(str(tmp_path / "in"), tmp_path / "out", BuildSettings(65_536), TokenizerSettings(str(tokenizer_path)))
    assert main(["inspect", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert len(page) < 2_000_000
    assert page.count("<i ") == 24_576
    assert "Shown: 24,576 of its 65,537 ids." in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "index.json"], "--html is index.json; the name of a file that ends in .html is wanted"),
        (["--html", "not/there/x.html"], "--html is not/there/x.html, in a directory that is not there: make it first"),
        (["--html", "x.html", "--json"], "--json and --html were both given: ask for one of them"),
        (["--sample", "0"], "--sample is 0; a number of chunks is wanted, 1 or more"),
    ],
)
def test_options_that_cannot_be_are_refused(small_tokens, capsys, arguments, message):
    assert main(["inspect", str(small_tokens), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
