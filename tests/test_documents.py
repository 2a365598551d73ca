"""Input rows of a dataset, by their number and by what is in them, asked of the files that it was made of."""

import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.__main__ import main
from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from preprocess.documents import Documents
from preprocess.parquet import Parquet
from shared.errors import FormatError, InputError
from shared.format import read_index
from shared.rows import InputRows
from tests.helpers import dataset_rows, named_rows, write_jsonl, write_named

NAMES = ["id", "url", "date"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_path):
    """A dataset of a parquet file, JSON lines and compressed ones, of several shards."""
    directory = tmp_path_factory.mktemp("documents")
    data = directory / "web"
    data.mkdir()
    write_named(data / "0.parquet", named_rows(0, 90), 10)
    write_jsonl(data / "1.jsonl", named_rows(90, 40))
    write_jsonl(data / "2.jsonl.zst", named_rows(130, 20), frames=3)
    build(str(data), directory / "web-tokens", BuildSettings(16, "text", 1000), TokenizerSettings(str(tokenizer_path)))
    return directory / "web-tokens"


@pytest.fixture
def moved(made, tmp_path):
    """A copy of the dataset, with its inputs beside it."""
    shutil.copytree(made, tmp_path / "web-tokens")
    shutil.copytree(made.with_name("web"), tmp_path / "web")
    return tmp_path / "web-tokens"


def wanted(source, row):
    first = {"0.parquet": 0, "1.jsonl": 90, "2.jsonl.zst": 130}[source]
    told = named_rows(first + row, 1)[0]
    return {name: told[name] for name in NAMES}


def test_every_row_is_told_by_its_columns_and_its_tokens(made):
    assert len(read_index(made).shards) > 3
    every = [(source, row, len(ids)) for source, row, ids in dataset_rows(made)]
    found = list(Documents(made, None).of_rows([(source, row) for source, row, _ in reversed(every)]))
    assert [(document.source, document.row, document.num_tokens) for document in found] == every
    for document in found:
        assert {name: getattr(document, name) for name in NAMES} == wanted(document.source, document.row)
        assert document.problem is None


def test_a_row_is_read_without_the_text_and_without_other_row_groups(made, monkeypatch):
    asked = []
    read = Parquet.read_columns

    def counted(self, path, row_groups, column, names):
        for batch in read(self, path, row_groups, column, names):
            asked.append((batch.num_rows, batch.schema.names))
            yield batch

    monkeypatch.setattr(Parquet, "read_columns", counted)
    assert [document.id for document in Documents(made, None).of_rows([("0.parquet", 57)])] == ["<urn:57>"]
    assert asked == [(10, NAMES)]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("<urn:17>", [("0.parquet", 17)]),
        ("https://example.org/95", [("1.jsonl", 5)]),
        ("w131w", [("2.jsonl.zst", 1)]),
        ("says the word w8", [("0.parquet", row) for row in (8, *range(81, 87), 88, 89)]),  # 80 and 87 have no text
        ("<urn:3>", [("0.parquet", 3)]),  # left out: its text is null
    ],
)
def test_a_document_is_found_by_id_url_or_a_piece_of_its_text(made, text, rows):
    assert [(document.source, document.row) for document in Documents(made, None).find(text)] == rows


def test_the_command_prints_what_it_can_read_again(made, capsys, monkeypatch):
    assert main(["documents", str(made), "1.jsonl:5", "0.parquet:3"]) == 0
    first = capsys.readouterr().out
    assert [json.loads(line)["num_tokens"] > 0 for line in first.splitlines()] == [False, True]
    monkeypatch.setattr("sys.stdin", io.StringIO(first))
    assert main(["documents", str(made), "-"]) == 0
    assert capsys.readouterr().out == first
    assert main(["documents", str(made), "--find", "<urn:95>"]) == 0
    assert capsys.readouterr().out == first.splitlines(keepends=True)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either FILE:ROW or --find is wanted: see python -m preprocess documents --help"),
        (["0.parquet:90"], "0.parquet has no row 90 in the dataset: it has 90, counted from 0"),
        (["0.parquet:x"], "'0.parquet:x' names no row: FILE:ROW is wanted, as in 000_00000.parquet:17"),
        (["3\x1b.parquet:1"], r"3\x1b.parquet is no input of the dataset"),
        (["0.parquet:" + "9" * 5000], "names no row: FILE:ROW is wanted"),
        (["--find", ""], "'' names no document: an id, a url or a piece of its text is wanted"),
        (["--find", "\udcff"], r"'\udcff' names no document: "),  # as argv has a byte that is no UTF-8
        (["--find", "nowhere\x1b"], r"has the id or url 'nowhere\x1b', or that in its text: give one as it stands in"),
        (["0.parquet:1", "--data", "/nowhere"], "/nowhere not found: a directory, a glob pattern or a"),
    ],
)
def test_what_is_not_there_is_one_line(made, capsys, arguments, message):
    assert main(["documents", str(made), *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"source": "a"}', '{"source": 1, "row": 1}', '{"source": "a", "row": "1"}']
)
def test_a_line_that_names_no_row_is_refused(made, capsys, monkeypatch, line):
    monkeypatch.setattr("sys.stdin", io.StringIO(line + "\n"))
    assert main(["documents", str(made), "-"]) == 2
    assert 'names no row: a line like {"source": "a.parquet", "row": 17} is wanted' in capsys.readouterr().err


def changed(path):
    """Other bytes of the same size, which no column shows."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"parquet-cpp") if path.suffix == ".parquet" else data.index(b"document")
    data[place : place + 2] = b"XX"
    path.write_bytes(data)


def longer(path):
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize("name", ["0.parquet", "1.jsonl"])
@pytest.mark.parametrize("harm", [changed, longer], ids=["other bytes", "longer"])
def test_an_input_that_has_changed_is_not_read_and_said_so(moved, name, harm):
    harm(moved.with_name("web") / name)
    (document,) = Documents(moved, None).of_rows([(name, 1)])
    assert document.problem == f"{name} is not what it was when the dataset was made"
    assert (document.id, document.url, document.date) == (None, None, None)
    assert document.num_tokens > 0
    assert Documents(moved, None).find("w131w")[0].source == "2.jsonl.zst"
    with pytest.raises(
        InputError, match=r"no document 'nowhere' in what can be read: .* is not what it was when .*1 suc"
    ):
        Documents(moved, None).find("nowhere")


def test_inputs_that_are_gone_are_said_so_and_found_again_elsewhere(moved, tmp_path):
    shutil.move(moved.with_name("web"), tmp_path / "elsewhere")
    (document,) = Documents(moved, None).of_rows([("0.parquet", 1)])
    assert document.problem == "0.parquet is not found: give the directory of the inputs with --data"
    (document,) = Documents(moved, str(tmp_path / "elsewhere")).of_rows([("0.parquet", 1)])
    assert document.id == "<urn:1>"
    (tmp_path / "elsewhere/0.parquet").unlink()
    (document,) = Documents(moved, str(tmp_path / "elsewhere")).of_rows([("0.parquet", 1)])
    assert document.problem == f"0.parquet is not in {tmp_path / 'elsewhere'}"


def test_files_without_such_columns_are_told_by_their_rows(tmp_path, tokenizer_path):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "in/a.parquet")
    write_jsonl(tmp_path / "in/b.jsonl", [{"id": 17, "text": "three"}, {"id": None, "text": "four"}])
    build(str(tmp_path / "in"), tmp_path / "in-tokens", BuildSettings(16), TokenizerSettings(str(tokenizer_path)))
    documents = Documents(tmp_path / "in-tokens", None)
    told = documents.of_rows([("a.parquet", 1), ("b.jsonl", 0), ("b.jsonl", 1)])
    assert [(document.id, document.url) for document in told] == [(None, None), ("17", None), (None, None)]
    assert [document.row for document in documents.find("17")] == [0]


def test_a_row_is_in_the_shard_that_has_it(made):
    index = read_index(made)
    rows = InputRows(index)
    for source, row, _ in dataset_rows(made):
        found = rows.shard_row(source, row)
        shard = index.shards[found.shard]
        assert (index.sources[shard.source].path, shard.first_row + found.row) == (source, row)
    with pytest.raises(FormatError, match="has no row -1 in the dataset"):
        rows.shard_row("0.parquet", -1)
