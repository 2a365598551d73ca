"""Text and datasets copied from and to places elsewhere: file:// as one that needs nothing, S3 served by moto."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
from fsspec.implementations.local import LocalFileSystem
from moto.server import ThreadedMotoServer

from preprocess.commands import COMMANDS
from shared.command import run_command
from shared.errors import FormatError, InputError
from shared.format import VALIDATION_NAME, read_index, write_index
from shared.remote import fetch
from tests.helpers import REPOSITORY as HERE
from tests.helpers import run_cli, write_parquet
from tests.hub import REPOSITORY, Hub, serving
from tests.test_watchdog import recipe_file
from train.commands import main as train
from train.outcome import read_state


def plain(directory: Path) -> dict[str, bytes]:
    """All files of a directory but the hidden ones."""
    paths = {path.relative_to(directory).as_posix(): path for path in directory.rglob("[!.]*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if not name.startswith(".")}


def preprocess(*words: object) -> int:
    return run_command("preprocess", COMMANDS, [str(word) for word in words])


def refusal(capsys, *words: object) -> str:
    capsys.readouterr()
    assert preprocess(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


@pytest.fixture
def elsewhere(tmp_path):
    directory = tmp_path / "elsewhere" / "text"
    directory.mkdir(parents=True)
    for number in range(2):
        write_parquet(directory / f"{number}.parquet", [f"text {number} {row}" for row in range(200)])
    return directory


@pytest.fixture
def dataset(small_tokens, tmp_path):
    """One with a validation split, as whole as the rest."""
    directory = tmp_path / "dataset"
    shutil.copytree(small_tokens, directory)
    shutil.copytree(small_tokens, directory / VALIDATION_NAME)
    return directory


def test_what_changed_elsewhere_comes_again_what_is_gone_goes_and_the_rest_is_left(elsewhere, tmp_path, capsys):
    here = tmp_path / "here"
    assert preprocess("fetch", f"file://{elsewhere}", here) == 0
    assert plain(here) == plain(elsewhere)
    kept = (here / "1.parquet").stat()
    write_parquet(elsewhere / "0.parquet", ["another"])
    write_parquet(elsewhere / "2.parquet", ["new"])
    capsys.readouterr()
    assert preprocess("fetch", f"file://{elsewhere}", here) == 0
    assert capsys.readouterr().out.startswith(f"3 files at file://{elsewhere}, 2 to fetch\n")
    (elsewhere / "2.parquet").unlink()
    assert preprocess("fetch", f"file://{elsewhere}", here) == 0
    assert plain(here) == plain(elsewhere)
    assert (here / "1.parquet").stat() == kept


def test_a_dataset_pushed_and_fetched_is_the_same(dataset, tmp_path, capsys):
    url = f"file://{tmp_path}/bucket/tokens"
    assert preprocess("push", dataset, url) == 0
    assert preprocess("fetch", url, tmp_path / "back") == 0
    assert plain(tmp_path / "back") == plain(dataset)
    capsys.readouterr()
    assert preprocess("push", dataset, url) == 0
    assert "already" in capsys.readouterr().out


def test_a_dataset_has_its_index_last_and_only_if_all_is_what_the_index_says(dataset, tmp_path):
    url, here = f"file://{dataset}", tmp_path / "here"
    shard = dataset / "00000.npy"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(InputError, match=r"^00000.npy has sha256 \w{12}, \w{12} is wanted: it was changed there$"):
        fetch(url, here)
    with pytest.raises(FormatError):
        read_index(here)
    raw[-1] ^= 1
    shard.write_bytes(raw)
    fetch(url, here)
    assert read_index(here) == read_index(dataset)


def test_a_dataset_is_made_from_text_elsewhere_and_put_elsewhere(
    elsewhere, tokenizer_path, tmp_path, monkeypatch, capsys
):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    options = ["--tokenizer", tokenizer_path, "--chunk-length", 32, "--workers", 1]
    there = tmp_path / "bucket" / "tokens"
    words = ["tokenize", f"file://{elsewhere}", f"file://{there}", *options]
    assert preprocess(*words, "--part", "1/2") == 0
    assert not there.exists()
    assert preprocess(*words, "--part", "2/2") == 0
    assert preprocess("tokenize", elsewhere, tmp_path / "by-hand", *options) == 0
    assert read_index(there).fingerprint == read_index(tmp_path / "by-hand").fingerprint
    assert plain(there) == plain(tmp_path / "data" / "tokens")
    capsys.readouterr()
    assert preprocess("fetch", f"file://{there}", tmp_path / "data" / "tokens") == 0
    assert capsys.readouterr().out == f"{tmp_path}/data/tokens has the dataset of file://{there} already\n"


def test_each_of_several_datasets_in_one_place_is_what_its_index_says(dataset, tmp_path):
    both, here = tmp_path / "both", tmp_path / "here"
    shutil.copytree(dataset, both / "web")
    shutil.copytree(dataset, both / "code")
    shard = both / "code" / "00000.npy"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(InputError, match=r"^code/00000\.npy has sha256 \w{12}, \w{12} is wanted"):
        fetch(f"file://{both}", here)
    raw[-1] ^= 1
    shard.write_bytes(raw)
    fetch(f"file://{both}", here)
    assert plain(here) == plain(both)


def test_what_cannot_be_copied_is_one_line(elsewhere, dataset, tmp_path, capsys, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    nothing, here, url = tmp_path / "nothing", tmp_path / "here", f"file://{elsewhere}"
    assert refusal(capsys, "fetch", f"file://{nothing}", tmp_path / "a") == (
        f"error: file://{nothing} has no files: name a directory that has\n"
    )
    assert preprocess("fetch", url, here) == 0
    assert refusal(capsys, "fetch", f"file://{dataset}", here) == (
        f"error: {here} has files of {url}, not of file://{dataset}: name another directory, or move that one away\n"
    )
    assert refusal(capsys, "fetch", url, dataset) == f"error: {dataset} is not empty: name a directory that is\n"
    assert refusal(capsys, "fetch", "gopher://a/b", tmp_path / "b").startswith("error: gopher://a/b: Protocol not kno")
    assert refusal(capsys, "push", elsewhere, "file:///tmp/x").startswith(f"error: {elsewhere} is not a token dataset")
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.json").write_text("{}")
    assert refusal(capsys, "push", dataset, f"file://{other}") == (
        f"error: file://{other} has another dataset: name a place that has none\n"
    )
    assert refusal(capsys, "tokenize", "s3://bucket", "tokens") == (
        "error: s3://bucket has no directory: s3://bucket/NAME is wanted\n"
    )
    assert refusal(capsys, "tokenize", url, "s3://bucket") == (
        "error: s3://bucket has no directory: s3://bucket/NAME is wanted\n"
    )
    assert train(["run", f"file://{dataset}", "run", "--stop-step", "0"], None) == 2
    assert capsys.readouterr().err.startswith("error: stop-step 0 is too small")
    assert plain(tmp_path / "data" / "dataset") == plain(dataset)
    for words in (["run", dataset], ["launch", "local", "tiny", "--tokens", dataset, "--run"]):
        assert train([*map(str, words), "s3://bucket/run"], None) == 2
        assert capsys.readouterr().err == (
            "error: s3://bucket/run is elsewhere: a run is kept on this machine, give a directory\n"
        )
    wanted = "error: s3://bucket/a is not on this machine: `python -m preprocess fetch s3://bucket/a DIR` brings it\n"
    assert refusal(capsys, "launch", "slurm", "s3://bucket/a", "tokens") == wanted
    assert refusal(capsys, "verify", "s3://bucket/a") == wanted
    assert (
        train(["launch", "slurm", "tiny", "--gpus", "1", "--walltime", "1:00", "--tokens", "s3://bucket/a"], None) == 2
    )
    assert capsys.readouterr().err == wanted


def test_what_came_cut_short_or_changed_meanwhile_is_not_taken(elsewhere, dataset, tmp_path, capsys, monkeypatch):
    assert preprocess("fetch", f"file://{dataset}", tmp_path / "here") == 0
    for path in (dataset / "index.json", dataset / VALIDATION_NAME / "index.json"):
        write_index(path.parent, replace(read_index(path.parent), text_column="other"))
    assert refusal(capsys, "fetch", f"file://{dataset}", tmp_path / "here") == (
        f"error: {tmp_path / 'here'} has another dataset by now: name another directory\n"
    )
    monkeypatch.setattr(LocalFileSystem, "get_file", lambda _, source, path: Path(path).write_bytes(b"PAR1"))
    size = (elsewhere / "0.parquet").stat().st_size
    assert refusal(capsys, "fetch", f"file://{elsewhere}", tmp_path / "cut") == (
        f"error: 0.parquet came with 4 bytes, {size} are listed: try again\n"
    )
    monkeypatch.setattr(LocalFileSystem, "put_file", lambda _, source, path: Path(path).write_bytes(b"PAR1"))
    assert refusal(capsys, "push", dataset, f"file://{tmp_path}/bucket").startswith(
        f"error: file://{tmp_path}/bucket has 4 bytes of 00000.documents.npy: push it again"
    )
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert refusal(capsys, "fetch", "s3://bucket/text", tmp_path / "s3").endswith(
        "; pip install 'argonne[s3]' for s3://\n"
    )


def test_files_of_the_hub_are_compared_with_the_sha256_that_it_lists(elsewhere, tmp_path, monkeypatch):
    hub = Hub()
    for path in elsewhere.iterdir():
        hub.files[f"data/text/{path.name}"] = path.read_bytes()
    with serving(hub) as address:
        places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
        url = f"hf://datasets/{REPOSITORY}/data/text"
        done = run_cli("preprocess", "fetch", url, tmp_path / "here", **places)
        assert done.returncode == 0, done.stderr
        assert plain(tmp_path / "here") == plain(elsewhere)
        hub.changed["data/text/0.parquet"] = 9
        done = run_cli("preprocess", "fetch", url, tmp_path / "there", **places)
        assert done.returncode == 2
        assert done.stderr.startswith("error: 0.parquet has sha256 ")


@pytest.fixture
def s3(monkeypatch):
    """A server that speaks S3, with one bucket."""
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("bucket")
    yield system
    server.stop()


@pytest.mark.slow
def test_text_of_s3_is_tokenized_and_its_dataset_pushed_there_and_trained_on(s3, elsewhere, tokenizer_path, tmp_path):
    s3.put(str(elsewhere), "bucket/text", recursive=True)
    work, url = tmp_path / "work", "s3://bucket/tokens"
    work.mkdir()

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = ["env", f"PYTHONPATH={HERE}", "OMP_NUM_THREADS=1", sys.executable, "-m", *map(str, words)]
        return subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)

    options = ["--tokenizer", tokenizer_path, "--chunk-length", 32, "--workers", 1]
    recipe = recipe_file(tmp_path, training__total_steps=2, model__vocab_size=2048)
    for words in [
        ["preprocess", "tokenize", "s3://bucket/text", url, *options],
        ["preprocess", "fetch", url, tmp_path / "back"],
        ["train", "run", url, tmp_path / "run", "--recipe", recipe, "--nproc", 1],
    ]:
        done = run(*words)
        assert done.returncode == 0, done.stderr
    assert plain(tmp_path / "data" / "text") == plain(elsewhere)
    assert plain(tmp_path / "data" / "tokens") == plain(tmp_path / "back")
    assert read_state(tmp_path / "run") == ("finished", 2, "all steps are done")
    done = run("preprocess", "push", tmp_path / "back", "s3://no-bucket/tokens")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: s3://no-bucket/tokens was not copied (")
