"""A run from its first process to its exit code: killed, robbed, started again, finished. All by real processes."""

import os
import signal
from contextlib import suppress

import pytest

from tests.helpers import await_that, run_cli, start_cli
from tests.launch_helpers import arguments, events, run_faulty
from tests.test_resume import family
from tests.test_run import contents
from tests.train_helpers import random_tokens, write_tokens
from train.outcome import nothing_to_do, read_state, write_state
from train.records import read_metrics


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    write_tokens(directory, [random_tokens(40_000)], vocab_size=64)
    return directory


# restarts


def test_ranks_are_started_again_after_a_kill_as_long_as_each_start_gets_further(tokens, tmp_path):
    changes = {"training__total_steps": 6, "checkpoint__every": 2}
    code, out, err = run_faulty("forward kill! 1 4", tokens, tmp_path, "--max-restarts", 1, **changes)
    assert code == 0, err
    run = tmp_path / "run"
    restarts = events(run, "restart")
    assert [(event["step"], event["rank"], event["attempt"]) for event in restarts] == [(2, 1, 1), (4, 1, 1)]
    assert [(event["step"], event.get("restarts")) for event in events(run, "start")] == [(0, None), (2, 1), (4, 2)]
    assert out.count("restart: rank 1, reason rank 1 was ended by SIGKILL, step 2, attempt 1\n") == 1
    assert [record["step"] for record in read_metrics(run)] == [*range(1, 7)]
    assert read_state(run) == ("finished", 6, "all steps are done")


def test_a_run_that_gets_nowhere_is_given_up(tokens, tmp_path):
    code, _, err = run_faulty("forward memory! 0 1", tokens, tmp_path, "--max-restarts", 1)
    reason = "rank 0 ended with exit code 71 (out of memory), 1 restarts without a new checkpoint"
    assert code == 1
    assert err.endswith(
        f"error: {reason} (the newest is of step 0): see above for its message, then run the same command again\n"
    )
    (restart,) = events(tmp_path / "run", "restart")
    assert (restart["rank"], restart["step"], restart["attempt"]) == (0, 0, 1)
    assert read_state(tmp_path / "run") == ("failed", 0, reason)


def test_bare_torchrun_brings_a_run_back_whose_rank_was_killed(tokens, tmp_path):
    changes = {"training__total_steps": 8, "checkpoint__every": 2}
    command = [*("--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"), "-m", "tests.faulty_rank"]
    command += [
        "optimizer",
        "kill",
        "0",
        "4",
        *map(str, arguments(tokens, tmp_path, **changes)[:-2]),
    ]  # torchrun has it
    done = run_cli("torch.distributed.run", *command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert [(event["step"], event.get("restarts")) for event in events(run, "start")] == [(0, None), (2, 1)]
    assert [record["step"] for record in read_metrics(run)] == [*range(1, 9)]
    assert read_state(run) == ("finished", 8, "all steps are done")


def test_restarts_that_cannot_be_are_one_line(tokens, tmp_path):
    ended = run_cli("train", "run", *arguments(tokens, tmp_path), "--max-restarts", -1)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: max-restarts -1 is too small")
    assert not (tmp_path / "run").exists()


# states


@pytest.mark.parametrize(
    ("state", "step", "reason", "last_step", "wanted"),
    [
        ("finished", 5, "all steps are done", 5, "(all steps are done): nothing to do; give a later training.total_st"),
        ("finished", 5, "--stop-step", 5, "(--stop-step): nothing to do; give a later --stop-step to go on"),
        ("finished", 5, "--stop-step", 3, "(--stop-step): nothing to do; give a later --stop-step to go on"),
        ("finished", 5, "--stop-step", 6, None),
        ("requeue", 5, "SIGTERM", 5, None),
        ("running", 5, "", 5, None),
        (None, 5, "", 5, None),
    ],
)
def test_a_finished_run_is_not_trained_further_by_accident(tmp_path, state, step, reason, last_step, wanted):
    if state is not None:
        write_state(tmp_path, state, step, reason)
    said = nothing_to_do(tmp_path, step, last_step)
    assert (said is None) == (wanted is None)
    if wanted is not None:
        assert said.startswith(f"{tmp_path} finished at step 5 {wanted}")


def test_a_duration_as_deadline_is_refused_where_torchrun_starts_again(tokens, tmp_path):
    words = ["run", *arguments(tokens, tmp_path), "--deadline", "8:00:00"]
    ended = run_cli("train", *words, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    assert ended.returncode == 2
    assert "error: deadline 8:00:00 would begin anew when torchrun restarts: give it a time, as that" in ended.stderr


# theft


def test_who_was_robbed_of_a_run_ends_and_leaves_the_thiefs_files_alone(tokens, tmp_path):
    run = tmp_path / "run"
    words = arguments(tokens, tmp_path, training__total_steps=100_000, checkpoint__every=10**9)
    robbed = start_cli("train", "run", *words, OMP_NUM_THREADS="1")
    await_that((run / "metrics.jsonl").exists, robbed)
    doomed = family(robbed.pid)
    for pid in doomed:
        os.kill(pid, signal.SIGSTOP)
    try:
        (run / "state.json.0a1b2c3d.tmp").write_text("of the robbed")
        thief = run_cli("train", "run", *words, "--steal", "--stop-step", 3, OMP_NUM_THREADS="1")
        assert (thief.returncode, thief.stderr) == (0, "")
        assert not (run / "state.json.0a1b2c3d.tmp").exists()
        before = contents(run)
    finally:
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    _, err = robbed.communicate(timeout=100)
    assert robbed.returncode == 2, err
    assert f"error: {run} was taken over: this process writes nothing there any more" in err
    assert contents(run) == before
    assert read_state(run) == ("finished", 3, "--stop-step")
