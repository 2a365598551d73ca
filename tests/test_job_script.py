"""Chains of jobs whose printed scripts are run for real, by a small batch system of this machine."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.batch import Job
from shared.errors import ConfigError, UserError
from shared.job_script import script
from shared.site import Site
from shared.slices import Chain
from shared.submit import submit
from tests.cluster import Cluster
from tests.helpers import REPOSITORY

COUNTING = [sys.executable, str(REPOSITORY / "tests" / "counting.py")]
SYSTEMS = ("slurm", "pbs")
NOWHERE = Site()


class Counting:
    """Work in `directory`, and the batch system that does it."""

    def __init__(self, directory: Path, system: str) -> None:
        self.system, self.chain, self.target = system, directory / "the chain", directory / "target"
        self.target.write_text(json.dumps({"count": 0, "starts": 0}))
        self.cluster = Cluster(directory / "spool", system)

    def text(self, *plan: str, site: Site = NOWHERE, **changes) -> str:
        command = shlex.join([*COUNTING, "work", str(self.target), *plan])
        usual = {"walltime_s": 60.0, "program": COUNTING, "target": self.target, "unit": "count", "origin": "a test"}
        job = Job(name="count", directory=self.chain, command=command, **{**usual, **changes})
        return script(self.system, job, site, REPOSITORY)

    def submit(self, text: str, monkeypatch) -> str:
        monkeypatch.setenv("PATH", self.cluster.environment["PATH"])
        return submit(self.system, self.chain, text, "count")

    @property
    def log(self) -> str:
        return (self.chain / "log").read_text()

    def marker(self, name: str) -> str:
        return (self.chain / name).read_text().splitlines()[0]

    def ends(self) -> list[tuple[int, str]]:
        lines = (self.chain / "slices.jsonl").read_text().splitlines()
        return [(event["at"], event["how"]) for event in map(json.loads, lines) if event["event"] == "end"]


@pytest.fixture(params=SYSTEMS)
def counting(tmp_path, request):
    return Counting(tmp_path, request.param)


def test_a_chain_goes_on_until_the_work_is_finished_whatever_became_of_its_slices(counting, monkeypatch):
    counting.submit(counting.text("10", "20!", "30x", "40^", "50~", "60."), monkeypatch)

    told = []

    def watch(number, pid, age_s):
        state = json.loads(counting.target.read_text() or "{}")
        job = counting.cluster.ran[-1]
        if (state.get("starts"), len(counting.cluster.ran)) == (4, 4):  # the node is lost, script and all
            counting.cluster.kill(job, signal.SIGKILL)
        if (state.get("starts"), len(counting.cluster.ran), told) == (5, 5, []):
            counting.cluster.kill(job, signal.SIGTERM)
            told.append(job)

    counting.cluster.drain(watch)
    assert counting.marker("FINISHED") == "code 0"
    assert len(counting.cluster.ran) == 6
    assert counting.ends() == [(10, "saved"), (20, "died"), (30, "failed"), (50, "saved"), (60, "finished")]
    assert counting.cluster.waiting() == []
    assert len(list(counting.cluster.spool.glob("*.cancelled"))) == 1


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (["10", "20x", "20x"], "failed twice at count 20: code 1"),
        (["10!", "10!"], "failed twice at count 10: code 137"),
        (["5m"], "needs a person: code 2"),
        (
            ["5", "5", "5", "5"],
            "needs a person: 3 slices got no further than count 5 (code 75): give them more time, or",
        ),
    ],
)
def test_a_chain_that_gets_nowhere_stops_and_says_why(counting, monkeypatch, plan, reason):
    counting.submit(counting.text(*plan), monkeypatch)
    counting.cluster.drain()
    assert counting.marker("STOPPED").startswith(reason)
    assert len(counting.cluster.ran) == len(plan)
    assert counting.cluster.waiting() == []
    assert (
        "to go on: mend it, delete this file, and submit job.sh from this directory"
        in (counting.chain / "STOPPED").read_text()
    )


def test_slices_that_die_without_a_word_stop_a_chain_too(counting, monkeypatch):
    counting.submit(counting.text("7^", "7^", "8."), monkeypatch)

    def watch(number, pid, age_s):
        if json.loads(counting.target.read_text() or "{}").get("starts") == len(counting.cluster.ran):
            counting.cluster.kill(counting.cluster.ran[-1], signal.SIGKILL)

    counting.cluster.drain(watch)
    assert counting.marker("STOPPED") == "failed twice at count 7: died without a word"
    assert len(counting.cluster.ran) == 3  # the last only says so


def test_a_slice_that_ends_while_the_script_hears_its_notice_has_its_own_code(counting, monkeypatch):
    """The shell's `wait` gives the signal's number for a code when a trap ran, here long enough for the work to end."""
    monkeypatch.setenv("BASH_FUNC_kill%%", '() { builtin kill "$@"; local code=$?; sleep 0.5; return $code; }')
    counting.submit(counting.text("10~", "20."), monkeypatch)
    told = []

    def watch(number, pid, age_s):
        if json.loads(counting.target.read_text() or "{}").get("starts") == 1 and not told:
            counting.cluster.kill(counting.cluster.ran[-1], signal.SIGTERM)
            told.append(pid)

    counting.cluster.drain(watch)
    assert counting.ends() == [(10, "saved"), (20, "finished")]


def test_a_walltime_ends_a_slice_after_a_notice_and_the_next_goes_on(tmp_path, monkeypatch):
    counting = Counting(tmp_path, "slurm")
    counting.submit(counting.text("10~", "20.", walltime_s=10), monkeypatch)
    counting.cluster.drain()
    assert counting.ends() == [(10, "saved"), (20, "finished")]


def test_a_script_that_was_saved_elsewhere_is_what_its_chain_goes_on_with(counting, tmp_path):
    mine = tmp_path / "mine.sh"
    mine.write_text(counting.text("10", "20."))
    command = "sbatch" if counting.system == "slurm" else "qsub"
    subprocess.run([command, mine], env=counting.cluster.environment, check=True, capture_output=True)
    counting.cluster.drain()
    assert counting.marker("FINISHED") == "code 0"
    assert (counting.chain / "job.sh").read_text() == mine.read_text()


def test_a_script_that_was_changed_meanwhile_is_kept(counting, monkeypatch):
    counting.submit(counting.text("10", "20", "30", "40."), monkeypatch)

    def watch(number, pid, age_s):
        path = counting.chain / "job.sh"
        if "# mine" not in path.read_text():
            path.write_text(f"{path.read_text()}# mine\n")

    counting.cluster.drain(watch)
    assert counting.marker("FINISHED") == "code 0"
    assert (counting.chain / "job.sh").read_text().endswith("# mine\n")


def test_a_batch_system_that_takes_no_other_job_is_told(counting, monkeypatch):
    counting.submit(counting.text("10", "20."), monkeypatch)
    (counting.cluster.spool / "full").touch()
    counting.cluster.drain()
    assert counting.marker("STOPPED").startswith("needs a person: no job was taken to follow 101")
    assert "QOSMaxSubmitJobPerUserLimit" in counting.log


def test_a_slice_that_cannot_begin_stops_the_chain(counting, monkeypatch, tmp_path):
    counting.submit(counting.text("10."), monkeypatch)
    (tmp_path / "broken").touch()
    counting.cluster.drain()
    assert counting.marker("STOPPED").startswith("needs a person: job 101")
    assert len(counting.cluster.ran) == 1


def test_a_chain_that_has_not_ended_is_not_begun_again_and_one_that_has_is(counting, monkeypatch):
    counting.submit(counting.text("10x", "10x", "20."), monkeypatch)
    first = counting.cluster.waiting()
    counting.chain.joinpath("slices.jsonl").write_text('{"event": "begin", "job": "7", "at": 0, "time": 0.0}\n')
    with pytest.raises(ConfigError, match=r"has a chain that has not ended \(its newest job is 7\): let it, or cancel"):
        submit(counting.system, counting.chain, "", "count")
    counting.chain.joinpath("slices.jsonl").unlink()
    assert counting.cluster.waiting() == first
    counting.cluster.drain()
    assert counting.marker("STOPPED").startswith("failed twice at count 10")
    counting.submit(counting.text("10x", "10x", "20."), monkeypatch)
    assert not (counting.chain / "STOPPED").exists()
    counting.cluster.drain()
    assert counting.marker("FINISHED") == "code 0"


def test_a_marker_keeps_the_next_slice_from_its_work(counting, monkeypatch):
    counting.submit(counting.text("10", "20."), monkeypatch)

    def watch(number, pid, age_s):
        if json.loads(counting.target.read_text() or "{}").get("starts") == 1:
            (counting.chain / "STOPPED").touch()

    counting.cluster.drain(watch)
    assert json.loads(counting.target.read_text())["count"] == 10
    assert counting.cluster.waiting() == []
    assert f"the chain has ended, see {counting.chain}: delete its marker to go on" in counting.log


def test_every_node_runs_the_work_with_a_place_to_meet(counting, monkeypatch):
    text = counting.text("10", "10", "11.", "11.", nodes=2, site=Site(setup=("echo set up",)))
    script = text.replace("  exec ", '  echo "node of $id at $head $((port > 20000))"\n  exec ', 1)
    counting.submit(script, monkeypatch)
    counting.cluster.drain()
    host = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    for job in counting.cluster.ran:
        assert counting.log.count(f"node of {job} at {host} 1") == 2
    assert counting.log.count("set up") == 6  # of two jobs, and of each of their nodes


def test_local_slices_follow_each_other_in_one_process(tmp_path):
    counting = Counting(tmp_path, "local")
    text = counting.text("10", "20!", "30.")
    (tmp_path / "job.sh").write_text(text)
    done = subprocess.run(["/bin/bash", "job.sh"], cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert counting.ends() == [(10, "saved"), (20, "died"), (30, "finished")]
    assert counting.marker("FINISHED") == "code 0"


def test_a_local_chain_is_started_and_left_to_itself(tmp_path):
    counting = Counting(tmp_path, "local")
    said = submit("local", counting.chain, counting.text("10", "20."), "count")
    assert re.fullmatch(rf"started as process \d+ \(`kill` asks it to stop\): tail -f {counting.chain}/log", said)
    end_s = time.monotonic() + 60
    while not (counting.chain / "FINISHED").exists():
        assert time.monotonic() < end_s, counting.log
        time.sleep(0.02)
    assert counting.ends() == [(10, "saved"), (20, "finished")]


def test_a_script_that_is_run_outside_of_a_job_says_so(counting, tmp_path):
    path = tmp_path / "job.sh"
    path.write_text(counting.text("10."))
    done = subprocess.run(["/bin/bash", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: this is no job: submit this script\n")


def test_a_job_that_is_not_taken_is_one_line(counting, monkeypatch, tmp_path):
    (counting.cluster.spool / "full").touch()
    with pytest.raises(
        UserError, match=r"^`\w+ job.sh` did not take the job \(error: QOSMax\w+\): mend that, job.sh is"
    ):
        counting.submit(counting.text("10."), monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"did not take the job \(.*No such file.*\): is \w+ on this machine\?$"):
        submit(counting.system, counting.chain, "", "count")
    assert Chain(counting.chain, "count").slices(0) == []
