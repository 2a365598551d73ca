"""Files brought from a hub of this machine: dropped connections, changed bytes, kills, and commits that come later."""

import random
import shutil
import sys
import time
from typing import NamedTuple

import pytest
from huggingface_hub import constants

from preprocess.commands import COMMANDS
from shared.command import run_command
from tests.helpers import run_cli, start_cli
from tests.hub import Hub, serving

MIB = 1 << 20
FOLDER = "data/CC-MAIN-2025-26"
NAMES = ("000_00002.parquet", "000_00010.parquet", "001_00000.parquet")


@pytest.fixture
def hub():
    made = Hub()
    for number, name in enumerate(NAMES):
        made.files[f"{FOLDER}/{name}"] = random.Random(number).randbytes(300_000 + number)
    made.files[f"{FOLDER}/README.md"] = b"no parquet"
    return made


@pytest.fixture
def address(hub, tmp_path):
    with serving(hub) as url:
        yield {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def download(address, monkeypatch, capsys):
    """The command in this process, which spares it the second that its packages take."""
    monkeypatch.setattr(constants, "ENDPOINT", address["HF_ENDPOINT"])
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"{address['HF_ENDPOINT']}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )

    def run(out, *words):
        capsys.readouterr()
        code = run_command("preprocess", COMMANDS, ["download", str(out), *words])
        return Done(code, *capsys.readouterr())

    return run


def there(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}


def wanted(hub, *names) -> dict[str, bytes]:
    return {name: hub.files[f"{FOLDER}/{name}"] for name in names}


def test_the_files_asked_for_come_in_natural_order_and_once(hub, download, tmp_path):
    done = download(tmp_path / "out", "--files", "0:2")
    assert done.returncode == 0, done.stderr
    assert there(tmp_path / "out") == wanted(hub, *NAMES[:2])
    sent = hub.sent_bytes
    done = download(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "3 files at HuggingFaceFW/fineweb@aaaaaaaaaaaa, 1 to fetch\n" in done.stdout
    assert there(tmp_path / "out") == wanted(hub, *NAMES)
    assert hub.sent_bytes - sent == len(hub.files[f"{FOLDER}/{NAMES[2]}"])


def test_a_connection_that_drops_goes_on_where_it_was(hub, download, tmp_path):
    path = f"{FOLDER}/{NAMES[0]}"
    hub.files[path] = random.Random(7).randbytes(24_000_000)
    hub.dropped[path] = [11_000_000, 12_000_000]
    done = download(tmp_path / "out", "--files", "0")
    assert done.returncode == 0, done.stderr
    assert there(tmp_path / "out") == wanted(hub, NAMES[0])
    ranges = [asked for method, where, asked in hub.asked if method == "GET" and where.endswith(NAMES[0])]
    assert ranges == [None, f"bytes={10 * MIB}-", f"bytes={20 * MIB}-"]  # it keeps pieces of 10 MiB


def test_bytes_that_changed_on_the_way_are_fetched_again_and_never_get_their_name(hub, download, tmp_path):
    path = f"{FOLDER}/{NAMES[0]}"
    hub.changed[path] = 1
    done = download(tmp_path / "out", "--files", "0")
    assert done.returncode == 0, done.stderr
    assert f"{NAMES[0]} has not the sha256 that the Hub lists: fetching it again\n" in done.stdout
    assert there(tmp_path / "out") == wanted(hub, NAMES[0])
    hub.changed[f"{FOLDER}/{NAMES[1]}"] = 99
    done = download(tmp_path / "out", "--files", "1")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {NAMES[1]} came 3 times with another sha256 (")
    assert done.stderr.count("\n") == 1
    assert there(tmp_path / "out") == wanted(hub, NAMES[0])


def test_a_killed_download_goes_on_where_it_was(hub, address, tmp_path):
    path = f"{FOLDER}/{NAMES[0]}"
    hub.files[path] = random.Random(7).randbytes(24_000_000)
    hub.stalled.add(path)
    process = start_cli("preprocess", "download", tmp_path / "out", "--files", "0", **address)
    end_s = time.monotonic() + 60
    while not any(file.stat().st_size >= 10_000_000 for file in (tmp_path / "out").rglob("*.part")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert there(tmp_path / "out") == {}
    hub.stalled.clear()
    done = run_cli("preprocess", "download", tmp_path / "out", "--files", "0", **address)
    assert done.returncode == 0, done.stderr
    assert there(tmp_path / "out") == wanted(hub, NAMES[0])
    assert hub.asked[-1][2] == f"bytes={10 * MIB}-"


def test_later_downloads_keep_to_the_commit_of_the_first(hub, download, tmp_path):
    assert download(tmp_path / "out", "--files", "0").returncode == 0
    hub.commits.append("b" * 40)
    done = download(tmp_path / "out", "--files", "1")
    assert done.returncode == 0, done.stderr
    assert "@aaaaaaaaaaaa, " in done.stdout
    done = download(tmp_path / "out", "--files", "1", "--revision", "b" * 40)
    assert done.returncode == 2
    assert f"has files of revision main, now {'b' * 40} is asked for: name another directory" in done.stderr


def test_a_folder_of_a_repository_is_asked_for_by_name(hub, download, tmp_path):
    hub.files["sample/10BT/000.parquet"] = b"PAR1"
    assert download(tmp_path / "out", "--folder", "sample/10BT").returncode == 0
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["000.parquet"]
    done = download(tmp_path / "other", "--repository", "somebody/corpus")
    assert done.returncode == 2
    assert done.stderr.startswith("error: somebody/corpus was not downloaded (")
    assert ("GET", "/api/datasets/somebody/corpus/revision/main", None) in hub.asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--files", "3:9"), "error: files 3:9 takes none of the 3 files that are there: lower it"),
        (("--files", "first"), "error: files 'first' is no range: first:end, as in 0:4, is wanted"),
        (("--crawl", "CC-MAIN-1999"), "error: HuggingFaceFW/fineweb has no parquet files in data/CC-MAIN-1999: give"),
        (("--revision", "none"), "error: HuggingFaceFW/fineweb was not downloaded ("),
    ],
)
def test_what_is_not_there_is_one_line(download, tmp_path, words, message):
    done = download(tmp_path / "out", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_disk_without_room_is_found_before_anything_is_fetched(hub, download, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 500_000, 500_000))
    done = download(tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path / 'out'} has 0.00 GB free, 0.00 GB are wanted: free some, or give fewer FILES\n"
    )
    assert hub.sent_bytes == 0
    assert download(tmp_path / "out", "--files", "0:1").returncode == 0


def test_a_file_without_a_listed_sha256_is_not_taken(hub, download, tmp_path):
    hub.unlisted.add(f"{FOLDER}/{NAMES[0]}")
    done = download(tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"error: the Hub lists no sha256 of {FOLDER}/{NAMES[0]}: it cannot be checked\n"


def test_what_is_needed_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run_command("preprocess", COMMANDS, ["download", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: huggingface_hub is not installed: pip install 'argonne[hub]'\n"


def test_a_hub_that_is_not_there_is_one_line(tmp_path):
    places = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = run_cli("preprocess", "download", tmp_path / "out", **places)
    assert done.returncode == 2
    assert done.stderr.startswith("error: HuggingFaceFW/fineweb was not downloaded (")
    assert done.stderr.endswith("run the same command to go on\n")
    assert done.stderr.count("\n") == 1
