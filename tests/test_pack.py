import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from preprocess.__main__ import main
from preprocess.build import build
from preprocess.config import BuildSettings, PackSettings, TokenizerSettings
from preprocess.pack import pack
from preprocess.parts import is_ours
from shared.errors import ConfigError, FormatError, UserError
from shared.format import read_index
from shared.locks import exclusive
from shared.packing import PackingName, read_packing
from shared.storage import read_sealed
from tests.helpers import REPOSITORY, await_that, contents, has_ended, run_cli, start_cli, workers_of
from tests.train_helpers import write_documents

LENGTH = 8
SIZES = [[3, 0, 12, 6], [], [2, 2]]


def some_sizes(num_shards, num_documents=40, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 30, num_documents).tolist() for _ in range(num_shards)]


@pytest.fixture
def tokens(tmp_path):
    write_documents(tmp_path / "tokens", some_sizes(5))
    return tmp_path / "tokens"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A dataset of so many shards that packing it takes a moment, and the files of its packing."""
    directory = tmp_path_factory.mktemp("many") / "tokens"
    write_documents(directory, some_sizes(400, 5))
    pack(directory, PackSettings(LENGTH))
    known = contents(directory / "packings/best-fit-8")
    shutil.rmtree(directory / "packings")
    return directory, known


@pytest.fixture
def unpacked(many):
    """The same without the packing."""
    shutil.rmtree(many[0] / "packings", ignore_errors=True)
    return many


def packed(tokens, method="best-fit"):
    return tokens / f"packings/{method}-{LENGTH}"


def start(tokens, *options):
    return start_cli("preprocess", "pack", tokens, "--length", LENGTH, *options)


# one and the same


@pytest.mark.parametrize("method", ["best-fit", "whole"])
def test_the_bytes_do_not_depend_on_the_number_of_workers(tokens, method):
    pack(tokens, PackSettings(LENGTH, method))
    known = contents(packed(tokens, method))
    shutil.rmtree(packed(tokens, method))
    done = run_cli("preprocess", "pack", tokens, "--length", LENGTH, "--method", method, "--workers", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(packed(tokens, method)) == known


def test_what_is_said_is_what_is_there(tmp_path, capsys):
    write_documents(tmp_path, SIZES)
    assert main(["pack", str(tmp_path), "--length", "8", "--workers", "1"]) == 0
    said = (
        r"packings/best-fit-8: 4 chunks of 8, 6 pieces, 37.500% padding, no token left out; fingerprint [0-9a-f]{12}\n$"
    )
    assert re.search(said, capsys.readouterr().out)
    assert main(["pack", str(tmp_path), "--length", "8", "--workers", "1", "--method", "whole"]) == 0
    said = "whole-8: 2 chunks of 8, 4 pieces, 43.750% padding, 1 documents with 12 tokens left out; fingerprint"
    assert said in capsys.readouterr().out
    packing = read_packing(PackingName(tmp_path, "whole", 8), read_index(tmp_path))
    assert [(shard.num_left_out, shard.tokens_left_out) for shard in packing.shards] == [(1, 12), (0, 0), (0, 0)]


def test_a_finished_packing_is_recognised_and_left_alone(tokens, capsys):
    pack(tokens, PackSettings(LENGTH))
    before = {path: path.stat().st_mtime_ns for path in packed(tokens).glob("[!.]*")}
    capsys.readouterr()
    assert main(["pack", str(tokens), "--length", str(LENGTH)]) == 0
    assert "best-fit-8 is complete: nothing to do\n" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in packed(tokens).glob("[!.]*")} == before


def test_each_method_and_length_has_its_own_directory(tokens):
    for method, length in (("best-fit", 8), ("whole", 8), ("best-fit", 9)):
        pack(tokens, PackSettings(length, method))
    assert sorted(path.name for path in (tokens / "packings").iterdir()) == ["best-fit-8", "best-fit-9", "whole-8"]


def test_a_dataset_is_not_touched_and_tokenizing_it_again_does_nothing(small_tokens, small_input, tmp_path, capsys):
    tokens = shutil.copytree(small_tokens, tmp_path / "tokens")
    before = contents(tokens)
    pack(tokens, PackSettings(64))
    capsys.readouterr()
    build(str(small_input), tokens, BuildSettings(64, "text", 100_000), TokenizerSettings(vocab_size=2048))
    assert "is complete: nothing to do" in capsys.readouterr().out
    assert read_packing(PackingName(tokens, "best-fit", 64), read_index(tokens)).total("num_targets")
    shutil.move(tokens / "packings", tmp_path / "packings")
    assert contents(tokens) == before
    assert is_ours("packings")


# kills


def test_a_killed_pack_continues_to_the_same_bytes(unpacked):
    tokens, known = unpacked
    process = start(tokens, "--workers", 2)
    await_that(lambda: len(list(packed(tokens).glob("[0-9]*.json"))) >= 5, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = {path.name: path.stat().st_mtime_ns for path in packed(tokens).glob("[0-9]*.json")}
    assert 5 <= len(there) < 400
    assert not (packed(tokens) / "index.json").exists()
    (packed(tokens) / "00399.pieces.npy.0a1b2c3d.tmp").touch()
    done = run_cli("preprocess", "pack", tokens, "--length", LENGTH)
    assert done.returncode == 0, done.stderr
    assert f"{len(there):,} of 400 shards are already packed: packing the others\n" in done.stdout
    assert {name: (packed(tokens) / name).stat().st_mtime_ns for name in there} == there
    assert contents(packed(tokens)) == known


def test_workers_end_with_a_killed_parent(unpacked):
    tokens, _ = unpacked
    process = start(tokens, "--workers", 2)
    await_that((packed(tokens) / "00001.json").exists, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    end_s = time.monotonic() + 5
    while not all(map(has_ended, workers)):
        assert time.monotonic() < end_s
        time.sleep(0.01)


def test_a_killed_worker_ends_it_with_one_line_and_it_continues(unpacked):
    tokens, known = unpacked
    process = start(tokens, "--workers", 2)
    await_that((packed(tokens) / "00001.json").exists, process)
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (
        2,
        "error: a worker ended in the middle of a shard: free some memory or give fewer --workers, then run again: "
        "it continues\n",
    )
    assert run_cli("preprocess", "pack", tokens, "--length", LENGTH).returncode == 0
    assert contents(packed(tokens)) == known


def test_an_interrupt_is_one_line_and_leaves_nothing_half_written(unpacked):
    tokens, known = unpacked
    process = start(tokens, "--workers", 2)
    await_that((packed(tokens) / "00001.json").exists, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted: run the same command again to continue\n")
    assert not list(packed(tokens).glob("*.tmp"))
    assert run_cli("preprocess", "pack", tokens, "--length", LENGTH).returncode == 0
    assert contents(packed(tokens)) == known


# what was there before


def test_a_dataset_made_again_otherwise_is_packed_again(tmp_path, capsys):
    write_documents(tmp_path, SIZES)
    pack(tmp_path, PackSettings(LENGTH))
    index = write_documents(tmp_path, [[5, 9], SIZES[2]])
    with pytest.raises(FormatError, match="is of dataset"):
        read_packing(PackingName(tmp_path, "best-fit", LENGTH), index)
    pack(tmp_path, PackSettings(LENGTH))
    out = capsys.readouterr().out
    assert re.search(r"packing again: .*best-fit-8/index.json is of dataset [0-9a-f]{12}, the one there is", out)
    packing = read_packing(PackingName(tmp_path, "best-fit", LENGTH), index)
    assert [shard.num_targets for shard in packing.shards] == [12, 2]
    assert not list(packed(tmp_path).glob("00002.*"))
    known = contents(packed(tmp_path))
    shutil.rmtree(packed(tmp_path))
    pack(tmp_path, PackSettings(LENGTH))
    assert contents(packed(tmp_path)) == known


def test_a_packing_of_another_dataset_is_none_before_its_arrays_change(tmp_path):
    """Or killing `pack` in the middle would leave an index whose dataset may come back."""
    write_documents(tmp_path, SIZES)
    pack(tmp_path, PackSettings(LENGTH))
    write_documents(tmp_path, [[5, 9], SIZES[2]])
    (tmp_path / "00000.documents.npy").unlink()
    with pytest.raises(FormatError, match=r"00000.documents.npy is missing"):
        pack(tmp_path, PackSettings(LENGTH))
    assert not (packed(tmp_path) / "index.json").exists()


def test_a_shard_with_the_same_documents_is_not_packed_again(tmp_path):
    write_documents(tmp_path, SIZES)
    pack(tmp_path, PackSettings(LENGTH))
    before = (packed(tmp_path) / "00000.pieces.npy").stat().st_mtime_ns
    write_documents(tmp_path, [SIZES[0], [4]])
    pack(tmp_path, PackSettings(LENGTH))
    assert (packed(tmp_path) / "00000.pieces.npy").stat().st_mtime_ns == before
    assert read_sealed(packed(tmp_path) / "00001.json")["num_targets"] == 3


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("00000.pieces.npy", lambda path: os.truncate(path, 200), "packing shard 0 again: .*is 200 bytes; "),
        ("00000.chunks.npy", lambda path: path.unlink(), "packing shard 0 again: .*00000.chunks.npy is missing"),
        ("00000.json", lambda path: path.write_text("{"), "packing shard 0 again: .*00000.json is not valid JSON"),
        ("00000.json", lambda path: path.unlink(), "4 of 5 shards are already packed"),
        ("index.json", lambda path: path.write_text("{"), "packing again: .*index.json is not valid JSON"),
    ],
)
def test_what_is_damaged_is_made_again(tokens, capsys, name, damage, said):
    pack(tokens, PackSettings(LENGTH))
    known = contents(packed(tokens))
    damage(packed(tokens) / name)
    capsys.readouterr()
    pack(tokens, PackSettings(LENGTH))
    assert re.search(said, capsys.readouterr().out)
    assert contents(packed(tokens)) == known


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--length", "0"], "error: --length is 0: 1 to 2147483647 targets per chunk are wanted\n"),
        (["--length", "2147483648"], "error: --length is 2147483648: 1 to 2147483647 targets per chunk are wanted\n"),
        (["--length", "8", "--workers", "0"], "error: --workers is 0: at least 1 process is wanted\n"),
    ],
)
def test_an_option_that_cannot_work_is_one_line(tokens, capsys, options, message):
    assert main(["pack", str(tokens), *options]) == 2
    assert capsys.readouterr().err == message
    assert not (tokens / "packings").exists()


def test_a_method_that_there_is_not_is_refused(tokens):
    with pytest.raises(ConfigError, match="--method is 'worst-fit': one of best-fit, whole is wanted"):
        PackSettings(8, "worst-fit")
    assert run_cli("preprocess", "pack", tokens, "--length", 8, "--method", "worst-fit").returncode == 2


def test_what_is_no_finished_dataset_is_not_packed(tmp_path, tokens):
    with pytest.raises(FormatError, match="none not found: a token dataset is wanted"):
        pack(tmp_path / "none", PackSettings(LENGTH))
    (tokens / "index.json").unlink()
    with pytest.raises(FormatError, match="is still being built"):
        pack(tokens, PackSettings(LENGTH))
    assert not (tokens / "packings").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_damaged_document_offsets_are_not_packed(tokens, workers):
    path = tokens / "00001.documents.npy"
    np.save(path, np.load(path) // 2)
    message = (
        r"00001.documents.npy does not match its checksum: delete 00001.\* there and run `make tokenize` again, then"
    )
    with pytest.raises(FormatError, match=message):
        pack(tokens, PackSettings(LENGTH, workers=workers))
    assert not (packed(tokens) / "index.json").exists()


def test_two_at_once_are_refused(tokens):
    packed(tokens).mkdir(parents=True)
    with (
        exclusive(packed(tokens), "pack"),
        pytest.raises(UserError, match=r"best-fit-8 is in use by another pack \(process \d+ on .*\): wait"),
    ):
        pack(tokens, PackSettings(LENGTH))


def test_a_directory_that_cannot_be_made_is_one_line(tokens):
    (tokens / "packings").touch()
    message = r"packings/best-fit-8 cannot be written \(Not a directory\): mend what is wrong there or name another"
    with pytest.raises(UserError, match=message):
        pack(tokens, PackSettings(LENGTH))


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path):
    write_documents(tmp_path / "tokens", some_sizes(2, 2000))
    command = [sys.executable, "-m", "preprocess", "pack", str(tmp_path / "tokens"), "--length", str(LENGTH)]
    limit = 20_000
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    message = (
        r"best-fit-8/\S+\.npy cannot be written \(File too large; at least [\d,]+ bytes are wanted for it\): allow "
    )
    assert re.search(
        message + r"larger files \(`ulimit -f`\), then run the same command again: it continues", done.stderr
    )
    assert [path.name for path in packed(tmp_path / "tokens").iterdir()] == [".lock"]
