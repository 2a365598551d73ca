"""A build and a packing survive whatever the operating system does at any one of their calls."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

QUICK_POINTS = 5  # of each fault
NUM_CHANGES, NUM_LOOKS = 280, 380  # calls that the job makes, at least
REFUSED = re.compile(
    r"error: \S+ cannot be (written|read) \(.*\): .*(make room|mend what is wrong|look at the disk)"
    r".*then run the same command again"
)
FAULTS = {  # kind, class and calls in a row: exit codes that there may be
    "exit:changes:1": {77},
    "half:changes:1": {77},
    "power:changes:1": {77},
    "names:changes:1": {77},
    "exit:looks:1": {77},
    "delay:changes:1": {0},
    "delay:looks:1": {0},
    "EINTR:changes:3": {0},
    "EINTR:looks:3": {0},
    "ESTALE:looks:3": {0},
    "EIO:looks:3": {0},
    "EIO:looks:4": {0, 2},
    "ESTALE:changes:1": {0, 2},
    "EIO:changes:1": {0, 2},
    "ENOSPC:changes:1": {0, 2},
    "ENOSPC:changes:1000": {2},
}


def drive(work, stride_of) -> dict[str, dict]:
    """Outcomes of all faults, from a process that may fork: the memory disk is as good, and many times as fast."""
    asked = [f"{fault}:{stride_of(number, fault)}" for number, fault in enumerate(FAULTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "tests.crash_points", str(work), *asked]
    completed = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    return {":".join(name.split(":")[:3]): outcome for name, outcome in json.loads(completed.stdout).items()}


def check(outcome: dict, fault: str) -> None:
    assert outcome["problems"] == []
    assert {int(code) for code in outcome["exit_codes"]} <= FAULTS[fault]
    assert [message for message in outcome["messages"] if not REFUSED.match(message)] == []


@pytest.fixture(scope="module")
def quick(memory_path):
    def spread(number, fault):
        num_calls = NUM_CHANGES if ":changes" in fault else NUM_LOOKS
        return f"{1 + 5 * number}:{num_calls // QUICK_POINTS}"

    return drive(memory_path, spread)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_build_survives_a_fault_at_calls_here_and_there(quick, fault):
    check(quick[fault], fault)
    assert quick[fault]["points"] >= QUICK_POINTS - 1


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_build_survives_a_fault_at_every_call(memory_path):
    outcomes = drive(memory_path, lambda *_: "1:1")
    for fault, outcome in outcomes.items():
        check(outcome, fault)
        assert outcome["points"] >= (NUM_CHANGES if ":changes" in fault else NUM_LOOKS)
    print({fault: outcome["points"] for fault, outcome in outcomes.items()})
