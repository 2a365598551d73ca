"""Checkpoints of two ranks under faults: of every call to the operating system, kills at any moment, rotten bits."""

import json
import os
import random
import re
import resource
import subprocess
import sys

import pytest
import torch

from shared.storage import read_sealed
from tests.helpers import REPOSITORY
from tests.test_checkpoint import saved
from tests.train_helpers import group_of_one, random_tokens, recipe, unasked, write_tokens
from train.backoff import Backoff
from train.checkpoint_directory import MANIFEST_NAME, damage, newest
from train.checkpoint_save import SaveError
from train.preflight import prepare
from train.records import read_metrics
from train.request import RunRequest
from train.run import execute

QUICK = {
    "synchronous": ["exit:changes:1:5:0", "power:changes:1:6:0", "names:changes:1:7:0", "exit:changes:1:4:1"],
    "asynchronous": [
        "ENOSPC:changes:1:6:0",
        "ENOSPC:changes:999:16:0",
        "EIO:looks:4:9:0",
        "EIO:looks:1:5:1",
        "kills:6",
    ],
}
NO_ROOM = (
    r"step-00000003 was not saved \([\d,]+ bytes\), older checkpoints are kept: .*No space.*: make room on that disk"
)
CHANGES = ["exit", "half", "power", "names", "ENOSPC", "EIO"]
EVERY = [f"{kind}:changes:1:1:{rank}" for kind in CHANGES for rank in (0, 1)]
LONG = {
    "synchronous": [*EVERY, "kills:100"],
    "asynchronous": [
        *EVERY,
        "ENOSPC:changes:999:1:0",
        "EIO:looks:1:1:0",
        "EIO:looks:4:1:0",
        "EIO:looks:4:1:1",
        "kills:100",
    ],
}


def driven(tmp_path, mode, asked):
    """Outcomes by what was asked for, of ranks that are processes of their own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.saving_points", str(tmp_path), mode, *asked],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["synchronous", "asynchronous"])
@pytest.mark.parametrize(
    "asked", [pytest.param(QUICK, id="quick"), pytest.param(LONG, id="long", marks=pytest.mark.long)]
)
def test_whatever_call_fails_or_is_the_last_checkpoints_are_whole_or_absent_and_the_newest_is_kept(
    tmp_path, mode, asked
):
    for fault, outcome in driven(tmp_path, mode, asked[mode]).items():
        assert outcome["problems"] == [], fault
        assert outcome["points"] >= 3, fault
        if fault.startswith("ENOSPC:changes:1:"):
            assert list(outcome["exit_codes"]) == ["[0, 0]"], fault
        for message in outcome["messages"]:
            assert re.search(NO_ROOM if "ENOSPC" in fault else r" cannot be (read|written) \(", message), message


def test_every_flipped_bit_and_every_cut_is_found_named_and_the_checkpoint_before_is_used(tmp_path):
    with group_of_one():
        saved(tmp_path, 4, 8)
    files, drawn = sorted((tmp_path / "step-00000008").iterdir()), random.Random(0)
    assert [path.name for path in files] == [".metadata", "MANIFEST.json", "__0_0.distcp"]
    for number in range(300):
        file = files[number % 3]
        whole = file.read_bytes()
        damaged = bytearray(whole)
        place = drawn.randrange(len(whole))
        damaged[place] ^= 1 << drawn.randrange(8)
        file.write_bytes(whole[:place] if number >= 250 else damaged)
        path, problems = newest(tmp_path)
        assert path == tmp_path / "step-00000004", (file, place)
        assert problems[tmp_path / "step-00000008"].startswith(f"{tmp_path / 'step-00000008'} is not used: {file} ")
        file.write_bytes(whole)
    assert newest(tmp_path) == (tmp_path / "step-00000008", {})


@pytest.mark.long
def test_every_single_bit_of_a_manifest_and_of_the_metadata_counts(tmp_path):
    with group_of_one():
        saved(tmp_path, 8)
    path = tmp_path / "step-00000008"
    before = read_sealed(path / MANIFEST_NAME)
    for file in (path / ".metadata", path / MANIFEST_NAME):
        whole = file.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            file.write_bytes(damaged)
            assert damage(path) is not None or read_sealed(path / MANIFEST_NAME) == before, (file, bit)
        file.write_bytes(whole)


def limit_files(size_bytes=None):
    """Let no file grow over so many bytes, as a full disk does."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokens")
    write_tokens(directory, [random_tokens(800)], vocab_size=64)
    return directory


def run(tokens, directory, asynchronous, full=()):
    """Steps and events of a run of eight steps that saves each second one; the disk is full in the steps `full`."""
    config = recipe(training__total_steps=8, checkpoint__every=2, checkpoint__asynchronous=asynchronous)
    forward_backward = Backoff.forward_backward

    def on_a_small_disk(backoff, step, batch):
        limit_files(20_000 if step in full else None)  # a checkpoint has 170,000
        return forward_backward(backoff, step, batch)

    try:
        with group_of_one(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(Backoff, "forward_backward", on_a_small_disk)
            execute(prepare(RunRequest(tokens, directory, config), 1), torch.device("cpu"), unasked())
    finally:
        limit_files()
    return told(directory)


def told(directory):
    events = [json.loads(line) for line in (directory / "events.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["data_digest"]) for record in read_metrics(directory)], events


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_run_goes_on_through_a_full_disk_and_ends_as_if_nothing_had_happened(tokens, tmp_path, asynchronous):
    straight, _ = run(tokens, tmp_path / "straight", asynchronous)
    steps, events = run(tokens, tmp_path / "run", asynchronous, full=(4, 5, 6, 7))
    assert steps == straight
    failed = [event["path"][-1] for event in events if event["event"] == "save-failed"]
    assert "4" in failed  # in the background, step 2's may still be under way, and step 6's find room again
    assert [event["step"] for event in events if event["event"] == "save"][-1] == 8


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_run_whose_end_finds_no_room_says_so_and_ends_well_when_there_is_some(tokens, tmp_path, asynchronous):
    straight, _ = run(tokens, tmp_path / "straight", asynchronous)
    message = (
        r"checkpoints/step-00000008 was not saved \([\d,]+ bytes\), older checkpoints are kept: .*File too large; at "
    )
    with pytest.raises(SaveError, match=message):
        run(tokens, tmp_path / "run", asynchronous, full=(6, 7, 8))
    steps, events = run(tokens, tmp_path / "run", asynchronous)
    assert steps == straight
    assert [event["step"] for event in events if event["event"] == "start"][1] in (2, 4)
