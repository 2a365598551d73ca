"""Builds on a real Ray cluster of three nodes of one CPU each, on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from preprocess.__main__ import main
from preprocess.build import build
from preprocess.config import BuildSettings, EngineSettings, Execution, Part, TokenizerSettings
from preprocess.job import Job
from preprocess.on_ray import why, write_on_ray
from preprocess.plan import make_plan
from preprocess.progress import Progress
from preprocess.sources import read_footer
from preprocess.tokenizer import load_tokenizer
from shared.errors import ConfigError
from shared.format import Selection, read_index
from tests.helpers import (
    REPOSITORY,
    await_that,
    beside_progress,
    contents,
    has_ended,
    run_cli,
    start_cli,
    write_parquet,
)

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(150)

SETTINGS = BuildSettings(64, "text", 100_000)
OPTIONS = ("--chunk-length", 64, "--shard-megabytes", 100_000 / (1 << 20), "--engine", "tokenizers")
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
TALKING_WRITER = """
_write_shard = write_shard


def write_shard(directory, root, plan, number, **options):
    print(f"shard {number} is here")
    return _write_shard(directory, root, plan, number, **options)
"""
INTERRUPTED = "interrupted: run the same command again to continue\n"


@pytest.fixture(scope="module")
def data(real_texts, tmp_path_factory):
    """Two files of many shards, and one between them that is one shard and takes some time."""
    directory = tmp_path_factory.mktemp("many")
    for name in ("2", "10"):
        write_parquet(directory / f"{name}.parquet", real_texts * 2, rows_per_group=40)
    write_parquet(directory / "7.parquet", real_texts * 2, rows_per_group=10_000)
    return directory


@pytest.fixture(scope="module")
def straight(data, tokenizer_path, tmp_path_factory):
    """The dataset of `data`, built in one process."""
    directory = tmp_path_factory.mktemp("straight") / "tokens"
    execution = Execution(engines=EngineSettings("tokenizers"))
    build(str(data), directory, SETTINGS, TokenizerSettings(str(tokenizer_path)), execution)
    return directory


@contextmanager
def start_cluster(num_cpus, code):
    """A cluster of one node so far; `client` is its address for a driver that is no node, which brings no code."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir="/tmp") as directory:  # for its sockets
        patch.setenv("PYTHONPATH", str(code))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", directory)  # Ray writes the head's address under it, where `temp_dir` says nothing
        patch.setenv("RAY_health_check_period_ms", "1000")
        port = free_port()
        head = {**NODE, "num_cpus": num_cpus, "temp_dir": f"{directory}/ray", "ray_client_server_port": port}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.client = f"ray://127.0.0.1:{port}"
        yield cluster
        cluster.shutdown()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three nodes, of one CPU each."""
    with start_cluster(1, REPOSITORY) as cluster:
        for _ in range(2):
            cluster.add_node(**NODE)
        yield cluster


@pytest.fixture(scope="module")
def bare_cluster(tmp_path_factory):
    """A cluster without a CPU, where our code is what is in its directory `code`, if anything."""
    code = tmp_path_factory.mktemp("code")
    with start_cluster(0, code) as cluster:
        cluster.code = code
        yield cluster


def start(data, out, tokenizer_path, address, *options):
    options = ("--tokenizer", tokenizer_path, *OPTIONS, "--ray", address, *options)
    return start_cli("preprocess", "tokenize", data, out, *options)


def tasks(directory, name="*.parquet"):
    """The processes of a cluster that read a file in `directory`."""
    files = set(directory.glob(name))
    return [pid for pid in processes() if is_task(pid) and reads(pid) & files]


def hold_one(directory, process, parents=None, name="*.parquet"):
    """Stop a process that reads a file in `directory`, of one of these parents if any are given, as soon as it does."""
    held = []

    def is_held():
        held.extend(pid for pid in tasks(directory, name) if parents is None or parent_of(pid) in parents)
        return held

    await_that(is_held, process)
    os.kill(held[0], signal.SIGSTOP)
    return held[0]


def processes():
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def is_task(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def reads(pid):
    try:
        return {link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # the process or its file is gone meanwhile
        return set()


def raylet_of(node):
    return node.all_processes["raylet"][0].process.pid


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def arrays(directory):
    """What does not tell by which engine it was made."""
    return {name: data for name, data in contents(directory).items() if name.endswith("npy") or name == "index.json"}


def shard_of(directory, name):
    index = read_index(directory)
    return next(i for i, shard in enumerate(index.shards) if index.sources[shard.source].path == name)


@pytest.mark.long
def test_duplicates_are_found_and_a_share_kept_apart_on_a_cluster_as_in_one_process(
    data, tokenizer_path, tmp_path, cluster
):
    selection = Selection("text.str.len_bytes() > 200", drop_duplicates=True, validation_share=0.1)
    settings, alone = replace(SETTINGS, selection=selection), tmp_path / "alone"
    execution = Execution(engines=EngineSettings("tokenizers"))
    build(str(data), alone, settings, TokenizerSettings(str(tokenizer_path)), execution)
    options = ("--where", selection.where, "--drop-duplicates", "--validation-share", 0.1)
    process = start(data, tmp_path / "out", tokenizer_path, cluster.address, *options)
    error = beside_progress(process.communicate(timeout=120)[1])
    assert process.returncode == 0, error
    assert sum(shard.num_duplicate for shard in read_index(alone).shards) > 0
    for directory in (Path(), Path("validation")):
        assert files_of(tmp_path / "out" / directory) == files_of(alone / directory)


def files_of(directory):
    files = [path for path in sorted(directory.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_cluster_makes_the_bytes_of_one_process_and_ray_is_not_heard(
    data, straight, tokenizer_path, tmp_path, cluster
):
    process = start(data, tmp_path / "out", tokenizer_path, cluster.address)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert contents(tmp_path / "out") == contents(straight)
    assert [line.split()[0] for line in out.splitlines()] == ["found", "writing", "encoding", "2,400"], out
    assert "writing on a Ray cluster of 3 CPUs and 3 nodes\n" in out
    assert all(line.startswith("shards ") for line in error.splitlines()), error


@pytest.mark.slow
def test_a_killed_node_and_a_killed_worker_are_noticed_and_their_shards_written_by_others(
    data, straight, tokenizer_path, tmp_path, cluster
):
    process = start(data, tmp_path / "out", tokenizer_path, cluster.address)
    nodes = {raylet_of(node): node for node in cluster.worker_nodes}

    def kill_a_worker():
        found = tasks(data, "7.parquet")
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return found

    killer = threading.Thread(target=await_that, args=(kill_a_worker, process))
    killer.start()
    held = hold_one(data, process, nodes, "2.parquet")  # in the middle of its shard
    await_that(lambda: list((tmp_path / "out").glob("[0-9]*.json")), process)
    cluster.remove_node(nodes[parent_of(held)], allow_graceful=False)
    os.kill(held, signal.SIGKILL)  # a machine takes its processes with it
    try:
        killer.join()
        out, error = process.communicate(timeout=120)
    finally:
        cluster.add_node(**NODE)
    assert process.returncode == 0, error
    assert " ended (its node died): trying it again (" in out
    assert f"the worker on shard {shard_of(straight, '7.parquet')} ended (its process died): trying it again (" in out
    assert contents(tmp_path / "out") == contents(straight)


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_set_aside_and_the_others_are_written(
    data, straight, tokenizer_path, tmp_path, cluster
):
    process, killed = start(data, tmp_path / "out", tokenizer_path, cluster.address), set()
    while process.poll() is None:
        for pid in set(tasks(data, "7.parquet")) - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        time.sleep(0.002)
    out, error = process.communicate()
    number = shard_of(straight, "7.parquet")
    assert (process.returncode, len(killed)) == (2, 3)
    assert error.splitlines()[-1] == (  # behind lines of progress, if it took long
        f"error: shard {number} (7.parquet, row groups 0 to 0) ended its worker 3 times (its process died): every "
        "other shard is written; free some memory or move the file away, then run again: it continues"
    )
    assert f"the worker on shard {number} ended (its process died): setting it aside\n" in out
    there = {int(path.name.split(".")[0]) for path in (tmp_path / "out").glob("[0-9]*.json")}
    assert there == set(range(len(read_index(straight).shards))) - {number}
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.slow
def test_two_builds_of_one_output_never_mix_and_one_whose_driver_was_killed_continues(
    data, straight, tokenizer_path, tmp_path, cluster
):
    process = start(data, tmp_path / "out", tokenizer_path, cluster.address)
    await_that((tmp_path / "out/00001.json").exists, process)
    held = hold_one(data, process)  # the build lasts
    while_alive = run_cli("preprocess", "tokenize", data, tmp_path / "out", "--ray", cluster.address)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(ProcessLookupError):  # Ray ends the tasks of a driver that is gone
        os.kill(held, signal.SIGCONT)
    assert while_alive.stderr.startswith(f"error: {tmp_path / 'out'} is in use by another build (process ")
    otherwise = start(data, tmp_path / "out", tokenizer_path, cluster.address, "--chunk-length", 17)
    error = beside_progress(otherwise.communicate(timeout=120)[1])
    assert (otherwise.returncode, error.count("\n")) == (2, 1)
    assert "out was built otherwise: chunk length: found 64, wanted 17: give it the same input and options" in error
    again = start(data, tmp_path / "out", tokenizer_path, cluster.address)
    out, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert " shards are already there: writing the others\n" in out
    assert contents(tmp_path / "out") == contents(straight)


@pytest.mark.long
def test_tasks_that_outlive_their_driver_write_nothing_more(
    small_input, small_tokens, tokenizer_path, tmp_path, cluster
):
    for attempt in range(3):  # a slow machine's client server gives up at times
        process = start(small_input, tmp_path / "out", tokenizer_path, cluster.client)
        try:
            held = hold_one(small_input, process)  # a task that hangs in the middle of its shard
            break
        except AssertionError as error:
            if attempt == 2 or "cannot be used" not in str(error):
                raise
    os.killpg(process.pid, signal.SIGKILL)  # of a client: Ray lets its tasks go on for a while
    process.wait()
    for _ in range(3):  # a slow machine's client server gives up at times
        again = start(small_input, tmp_path / "out", tokenizer_path, cluster.client)
        _, error = again.communicate(timeout=120)
        if "cannot be used" not in error:
            break
    assert again.returncode == 0, error
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    os.kill(held, signal.SIGCONT)
    end_s = time.monotonic() + 60
    while held in tasks(small_input) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert held not in tasks(small_input)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == finished
    assert arrays(tmp_path / "out") == arrays(small_tokens)


@pytest.mark.slow
def test_an_interrupt_ends_all_tasks_with_one_line_and_leaves_nothing_half_written(
    data, tokenizer_path, tmp_path, cluster
):
    process = start(data, tmp_path / "out", tokenizer_path, cluster.address)
    await_that(lambda: (tmp_path / "out/00001.json").exists() and tasks(data), process)
    workers = tasks(data)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, INTERRUPTED)
    assert all(map(has_ended, workers))
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.slow
def test_a_cluster_of_our_own_ends_with_its_build(small_input, small_tokens, tokenizer_path, tmp_path):
    process = start(small_input, tmp_path / "out", tokenizer_path, "local")
    await_that(lambda: tasks(small_input), process)
    own = [pid for pid in processes() if parent_of(pid) == process.pid]
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, INTERRUPTED)
    assert own
    assert all(map(has_ended, own))
    again = start(small_input, tmp_path / "out", tokenizer_path, "local")
    _, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert arrays(tmp_path / "out") == arrays(small_tokens)


@pytest.mark.slow
def test_a_mistake_in_the_input_ends_the_build_with_one_line(bad_data, data, tokenizer_path, tmp_path, cluster):
    (tmp_path / "in").mkdir()
    for path in (data / "2.parquet", bad_data / "corrupt_page.parquet"):
        shutil.copy(path, tmp_path / "in")
    process = start(tmp_path / "in", tmp_path / "out", tokenizer_path, cluster.address)
    error = beside_progress(process.communicate(timeout=120)[1])
    assert (process.returncode, error.count("\n")) == (2, 1)
    assert "corrupt_page.parquet: row group 0 cannot be read" in error
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.slow
def test_an_input_that_a_node_does_not_share_is_not_taken_for_a_bad_file(data, tokenizer_path, tmp_path, cluster):
    shutil.copytree(data, tmp_path / "in")
    process = start(tmp_path / "in", tmp_path / "out", tokenizer_path, cluster.address, "--on-bad-file", "skip")
    held = hold_one(tmp_path / "in", process)
    size_bytes = (tmp_path / "in/10.parquet").stat().st_size
    (tmp_path / "in/10.parquet").write_bytes(b"")
    os.kill(held, signal.SIGCONT)
    error = beside_progress(process.communicate(timeout=120)[1])
    assert (process.returncode, error.count("\n")) == (2, 1)
    assert "10.parquet on " in error
    assert f" is not there with its {size_bytes:,} bytes: every node must share the input\n" in error


@pytest.mark.slow
def test_a_bug_in_a_task_shows_its_traceback(data, tokenizer_path, tmp_path, cluster):
    tokenizer = load_tokenizer(tokenizer_path, None)
    plan = make_plan([read_footer(data / "2.parquet", data, "text")], SETTINGS, tokenizer.identity)
    job = Job(tmp_path, data, plan, tokenizer.raw, EngineSettings("tokenizers"))
    with pytest.raises(RuntimeError, match=r"a task failed:\n(.*\n)*.*IndexError"), Progress(1, 1, 0, 0) as progress:
        write_on_ray(job, [999], cluster.address, progress)


@pytest.mark.slow
def test_a_cluster_without_a_cpu_is_waited_for_and_told(small_input, tokenizer_path, tmp_path, bare_cluster):
    process = start(small_input, tmp_path / "out", tokenizer_path, bare_cluster.address)
    assert [process.stdout.readline() for _ in range(3)][1:] == [
        "writing on a Ray cluster of 0 CPUs and 1 node\n",
        "the Ray cluster has no CPU: waiting for a node that has\n",
    ]
    os.killpg(process.pid, signal.SIGINT)
    assert beside_progress(process.communicate(timeout=30)[1]) == INTERRUPTED


@pytest.mark.slow
def test_a_node_must_have_the_code_of_the_driver_whose_tasks_are_heard(
    small_input, small_tokens, tokenizer_path, tmp_path, bare_cluster
):
    def outcome(directory=REPOSITORY):
        options = ("--tokenizer", tokenizer_path, *OPTIONS, "--ray", bare_cluster.client)
        command = [sys.executable, "-m", "preprocess", "tokenize", small_input, tmp_path / "out", *options]
        for _ in range(4):  # Ray's own server for such drivers gives up where a machine is slow
            done = subprocess.run([*map(str, command)], cwd=directory, capture_output=True, text=True, check=False)
            if "Initialization failure from server" not in done.stderr:
                break
        return done.returncode, done.stdout, beside_progress(done.stderr)

    node = bare_cluster.add_node(**NODE)
    (bare_cluster.code / "preprocess").mkdir()
    (bare_cluster.code / "preprocess/__init__.py").touch()
    (bare_cluster.code / "preprocess/on_node.py").write_text("import what_is_not_there")
    line = "a node cannot run this code (ModuleNotFoundError: No module named 'what_is_not_there'): install the same"
    code, _, error = outcome()
    assert code == 2
    assert error.endswith(f"error: {line} argonne on every node\n")
    for package in ("preprocess", "shared"):
        shutil.copytree(REPOSITORY / package, bare_cluster.code / package, dirs_exist_ok=True)
    with open(bare_cluster.code / "preprocess/writer.py", "a") as file:
        file.write(TALKING_WRITER)
    code, _, error = outcome()
    assert (code, error.count("\n")) == (2, 1)
    assert " has other software: argonne: found sha256 " in error
    assert error.endswith(": install the same everywhere\n")
    code, out, error = outcome(bare_cluster.code)
    bare_cluster.remove_node(node)
    assert code == 0, error
    heard = [line for line in out.splitlines() if line.endswith(" is here")]
    assert heard == [f"shard {number} is here" for number in range(len(read_index(small_tokens).shards))]
    assert arrays(tmp_path / "out") == arrays(small_tokens)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "[Errno 111] Connection refused"),
        ("ray://127.0.0.1:1", "[Errno 111] Connection refused"),
        ("nonsense", "Invalid address format: nonsense"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(
    small_input, tokenizer_path, tmp_path, capsys, address, reason
):
    options = ["--tokenizer", str(tokenizer_path), "--ray", address]
    assert main(["tokenize", str(small_input), str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err == (
        f"error: the Ray cluster at {address} cannot be used ({reason}): start one with `ray start`, or give --ray "
        "local\n"
    )


def test_a_death_is_told_in_a_few_words_or_in_those_of_ray():
    from ray import exceptions

    assert why(exceptions.NodeDiedError("Task failed because the node it was running on is dead.")) == "its node died"
    assert why(exceptions.OutOfMemoryError("Task was killed due to the node running low on memory.")) == "out of memory"
    assert why(exceptions.RaySystemError("something new\nwith details")) == "System error: something new"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 2}, "--ray with --workers: a cluster works with all of its CPUs, leave --workers out"),
        ({"part": Part(1, 2)}, "--ray with --part: a cluster writes every part, leave --part out"),
    ],
)
def test_a_cluster_is_not_combined_with_other_ways_to_work(changes, message):
    with pytest.raises(ConfigError, match=message):
        Execution(ray="auto", **changes)


def test_without_ray_the_extra_is_named(small_input, tmp_path):
    code = "import sys; sys.modules['ray'] = None; from preprocess.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "tokenize", small_input, tmp_path / "out", "--ray", "auto"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    message = "error: --ray needs ray, which is not installed: pip install 'argonne[ray]'\n"
    assert (done.returncode, done.stderr) == (2, message)
