import pyarrow.parquet as pq
import pytest

from preprocess.corpus import SCHEMA, harvest, sample_corpus
from preprocess.sources import find_sources, read_footer
from shared.errors import ConfigError
from tests.helpers import contents, run_cli


def test_a_corpus_has_fineweb_columns_the_size_asked_for_and_no_absolute_path(tmp_path, capsys):
    sample_corpus(tmp_path / "corpus", 500_000)
    assert "MB of text from this Python installation" in capsys.readouterr().out
    files = sorted((tmp_path / "corpus").iterdir())
    assert [file.name for file in files] == [f"000_0000{i}.parquet" for i in range(3)]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert all(pq.read_schema(file).names == SCHEMA.names for file in files)
    assert 500_000 <= sum(len(row["text"].encode()) for row in rows) < 800_000
    assert {row["file_path"].partition("/")[0] for row in rows} <= {"stdlib", "site-packages"}
    assert len({row["id"] for row in rows}) == len(rows)
    root, found = find_sources(str(tmp_path / "corpus"))
    assert sum(read_footer(file, root, "text").num_rows for file in found) == len(rows)


def test_a_corpus_is_deterministic_and_an_earlier_one_is_kept(tmp_path, capsys):
    sample_corpus(tmp_path / "a", 300_000)
    sample_corpus(tmp_path / "b", 300_000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    sample_corpus(tmp_path / "a", 900_000)
    assert "already has a corpus: nothing to do" in capsys.readouterr().out
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_a_killed_harvest_left_is_replaced(tmp_path):
    (tmp_path / "a.tmp").mkdir()
    (tmp_path / "a.tmp/000_00000.parquet").write_bytes(b"half")
    sample_corpus(tmp_path / "a", 300_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_text_that_is_short_huge_or_not_utf8_is_left_out(tmp_path):
    (tmp_path / "pkg/__pycache__").mkdir(parents=True)
    for name, data in {
        "good.py": b"x = 1\n" * 100,
        "pkg/METADATA": b"Name: a package\n" * 100,
        "pkg/__pycache__/cached.py": b"x = 1\n" * 100,
        "short.py": b"x = 1\n",
        "huge.md": b"x" * 300_000,
        "latin.txt": b"\xe9" * 1000,
        "binary.so": b"x" * 1000,
    }.items():
        (tmp_path / name).write_bytes(data)
    assert {document.path for document in harvest({"lib": tmp_path}, 10**9)} == {"lib/good.py", "lib/pkg/METADATA"}


def test_a_directory_of_other_things_and_no_text_at_all_are_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty and has no \*\.parquet file: name another directory"):
        sample_corpus(tmp_path, 300_000)
    with pytest.raises(ConfigError, match="no text for a corpus of 0 bytes was found"):
        sample_corpus(tmp_path / "new", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_the_command_makes_a_corpus(tmp_path):
    done = run_cli("preprocess", "sample-corpus", tmp_path / "a", "--megabytes", 0.3)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "a").glob("*.parquet"))) == 3
