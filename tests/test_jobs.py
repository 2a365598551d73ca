"""The commands that print or submit job scripts, and a run and a build carried to their ends by what they print."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.cluster import Cluster
from tests.helpers import REPOSITORY, contents, run_cli
from tests.launch_helpers import events, records
from tests.test_parts import OPTIONS
from tests.test_watchdog import recipe_file
from tests.train_helpers import random_tokens, write_tokens
from train.commands import main
from train.outcome import read_state, write_state
from train.slices import ended

SITE = """
account = "ml-7"
queue = "gpu"
walltime = "4:00"
gpus = 4
cpus = 64
directives = ["--constraint=a100"]
setup = ["source /etc/profile.d/modules.sh"]
modules = ["cuda/12.6"]
"""

FEW = ["--training.microbatch", 2]  # so that 8 ranks share a batch of 16


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    write_tokens(directory, [random_tokens(40_000)], vocab_size=64)
    return directory


@pytest.fixture
def site(tmp_path, monkeypatch):
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    monkeypatch.setenv("ARGONNE_SITE", str(path))
    return path


def printed(capsys, *words) -> tuple[str, str]:
    """The script and what was resolved."""
    assert main(["launch", *map(str, words)], None) == 0
    return capsys.readouterr()


def refusal(capsys, *words) -> str:
    assert main(["launch", *map(str, words)], None) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_what_is_asked_for_is_in_the_script_and_shown_with_where_it_is_from(capsys, tokens, tmp_path, site):
    words = ["--tokens", tokens, "--run", tmp_path / "a run", *FEW, "--training.total-steps", 77, "--max-restarts", 5]
    script, told = printed(capsys, "slurm", "tiny", "--nodes", 2, *words)
    for line in ("--nodes=2", "--gpus-per-node=4", "--cpus-per-task=64", "--time=04:00:00", "--account=ml-7"):
        assert f"#SBATCH {line}\n" in script
    for line in ("--partition=gpu", "--constraint=a100", "--signal=B:USR1@600", "--no-requeue"):
        assert f"#SBATCH {line}\n" in script
    assert script.index("source /etc/profile.d/modules.sh\n") < script.index("module load cuda/12.6\n")
    assert "\nsrun --cpus-per-task=64 /bin/bash " in script
    assert "--nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d" in script
    assert " --max-restarts=5 --shutdown-timeout=600 --signals-to-handle=SIGTERM,SIGINT,SIGUSR1" in script
    assert (
        f"'{tmp_path / 'a run'}' --recipe tiny --training.microbatch 2 --training.total-steps 77 --max-restarts 5\n"
        in script
    )
    assert [line.split(maxsplit=1) for line in told.splitlines()[:3]] == [
        ["run", f"{tmp_path / 'a run'}, to step 77"],
        ["recipe", "tiny, fsdp on 8 ranks"],
        ["tokens", str(tokens)],
    ]
    for name, value in (
        ("account", "ml-7"),
        ("queue", "gpu"),
        ("cpus", "64"),
        ("modules", "cuda/12.6"),
        ("site", site),
    ):
        assert [name, str(value)] in [line.split(maxsplit=1) for line in told.splitlines()]
    assert "not submitted: --submit does it, or save this script" in told
    assert not (tmp_path / "a run-job").exists()


def test_pbs_is_asked_in_its_own_words(capsys, tokens, tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('select = "system=polaris"\ndirectives = ["-l filesystems=home"]\nspawn = "mpiexec -n 2 --ppn 1"\n')
    words = ["--nodes", 2, "--gpus", 4, "--walltime", "8:00:00", "--tokens", tokens, "--site", path, *FEW]
    script, told = printed(capsys, "pbs", "tiny", *words)
    assert "cpus       what the system gives, often one: cpus in the site file asks for more\n" in told
    assert "#PBS -l select=2:ngpus=4:mpiprocs=1:system=polaris\n#PBS -l place=scatter\n" in script
    assert "#PBS -l walltime=08:00:00\n" in script
    assert "#PBS -l filesystems=home\n" in script
    assert 'mpiexec -n 2 --ppn 1 /bin/bash "$job/job.sh" on-node "$(hostname)" "$id" &\n' in script


def test_a_mixture_is_checked_before_it_is_asked_for(capsys, tokens, tmp_path):
    recipe = recipe_file(tmp_path)
    recipe.write_text(f'{recipe.read_text()}\n[[data.sources]]\nname = "tokens"\nweight = 1.0\n')
    words = ["slurm", recipe, "--gpus", 1, "--walltime", "8:00"]
    script, _ = printed(capsys, *words, "--tokens", tokens.parent)
    assert f"-m train run {tokens.parent} " in script
    assert refusal(capsys, *words, "--tokens", tokens).startswith(
        f"error: {tokens}/tokens not found: a token dataset is wanted"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "tiny", "--gpus", 4], "error: walltime is not given: --walltime 8:00:00, or walltime in the site"),
        (["slurm", "tiny", "--walltime", "8:00"], "error: gpus is not given: --gpus 8, or gpus in the site file, is w"),
        (
            ["slurm", "tiny", "--gpus", 3, "--walltime", "8:00"],
            "error: data.global_batch 16 does not divide into microbatches of 4 on 3 data",
        ),
        (["slurm", "tiny", "--gpus", 0, "--walltime", "8:00"], "error: gpus 0 is too small"),
        (["slurm", "tiny", "--gpus", 4, "--walltime", "long"], "error: walltime 'long' is no duration: hours:minutes"),
        (["slurm", "tiny", "--gpus", 4, "--walltime", "0:00"], "error: walltime 0:00 is no time: more than 0 is want"),
        (["slurm", "tony", "--gpus", 4, "--walltime", "8:00"], "error: recipe 'tony' not found: one of 125m"),
        (["local", "tiny", "--nodes", 2], "error: nodes 2 is too many: this machine is one"),
        (["local", "tiny", "--deadline", "8:00:00"], "error: deadline 8:00:00 is given: leave it out, --gpus and --w"),
        (["local", "tiny", "--nproc", 2], "error: nproc 2 is given: leave it out, --gpus and --walltime say it"),
        (["local", "tiny", "--site", "none.toml"], "error: none.toml not found: name an existing site file, or none"),
        (["local", "tiny", "--max-restarts", -1], "error: max-restarts -1 is too small"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(capsys, tokens, monkeypatch, tmp_path, words, message):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refusal(capsys, *words, "--tokens", tokens).startswith(message)


def test_a_site_that_is_none_is_one_line(capsys, tokens, tmp_path):
    path = tmp_path / "site.toml"
    for text, message in [
        ('acount = "a"', f"error: {path}: unknown key 'acount': did you mean 'account'?"),
        ('account = "a\\nb"', f"error: {path}: account 'a\\nb' has more than one line: a line each is wanted"),
    ]:
        path.write_text(text)
        assert refusal(capsys, "local", "tiny", "--tokens", tokens, "--site", path).startswith(message)


def test_a_line_break_in_an_argument_stays_in_the_comment(capsys, tokens, tmp_path):
    script, _ = printed(capsys, "local", "tiny", "--tokens", tokens, "--run", tmp_path / "a\nrm -r b")
    comments = [line for line in script.splitlines() if line.startswith("# ")]
    assert [line.count(r"a\nrm -r b") for line in comments] == [1, 1]
    assert subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("state", "code", "error", "wanted"),
    [
        (None, 0, None, ("died", "exit code 0 before it began")),
        (("finished", 9, "all steps are done"), 0, None, ("finished", "all steps are done")),
        (("requeue", 5, "SIGUSR1"), 1, None, ("saved", "SIGUSR1")),  # torchrun's exit code after a signal
        (("failed", 5, "no"), 1, None, ("failed", "no")),
        (("running", 5, ""), 1, None, ("died", "exit code 1 in the middle")),
        (("running", 5, ""), 1, {"message": "recipe: no"}, ("mistake", "recipe: no")),
        (("running", 5, ""), 1, {"message": {"message": "RuntimeError"}}, ("died", "exit code 1 in the middle")),
        (("requeue", 5, "SIGUSR1"), 2, None, ("mistake", "see the log")),
    ],
)
def test_how_a_slice_ended_is_what_its_ranks_have_left(tmp_path, state, code, error, wanted):
    if state is not None:
        write_state(tmp_path, *state)
    if error is not None:
        (tmp_path / "error.json").write_text(json.dumps(error))
    assert ended(tmp_path, tmp_path / "error.json", code, 0.0) == wanted


def test_what_an_earlier_slice_said_is_not_taken_for_this_ones(tmp_path):
    write_state(tmp_path, "requeue", 5, "SIGUSR1")
    assert ended(tmp_path, tmp_path / "no", 1, 1e12) == ("died", "exit code 1 before it began")
    write_state(tmp_path, "finished", 5, "all steps are done")
    assert ended(tmp_path, tmp_path / "no", 0, 1e12) == ("finished", "all steps are done")


def submit(capsys, cluster, path, *words) -> None:
    """Save what is printed, and submit that."""
    script, _ = printed(capsys, *words)
    path.write_text(script)
    command = "sbatch" if cluster.system == "slurm" else "qsub"
    subprocess.run([command, path], env=cluster.environment, check=True, capture_output=True)


@pytest.mark.long
def test_a_mistake_that_only_the_ranks_find_stops_the_chain_with_their_words(capsys, tokens, tmp_path):
    cluster, run = Cluster(tmp_path / "spool", "slurm"), tmp_path / "run"
    run.mkdir()
    (run / "mine").touch()
    recipe = recipe_file(tmp_path)
    words = ["--nodes", 1, "--gpus", 1, "--walltime", "0:05:00", "--tokens", tokens, "--run", run]
    submit(capsys, cluster, tmp_path / "job.sh", "slurm", recipe, *words)
    cluster.drain()
    said = (tmp_path / "run-job" / "STOPPED").read_text()
    assert said.startswith(f"needs a person: {run} is not empty and not a run (no run.json): name another directory\n")
    assert len(cluster.ran) == 1


STEPS = 2500


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("system", ["slurm", "pbs"])
def test_a_run_on_two_nodes_in_five_slices_with_crashes_equals_an_unbroken_one(capsys, tokens, tmp_path, system):
    cluster, run = Cluster(tmp_path / "spool", system), tmp_path / "run"
    changes = {"training__total_steps": STEPS, "checkpoint__every": 10, "recovery__deadline_margin_s": 12.0}
    recipe = recipe_file(tmp_path, **changes)
    words = ["--nodes", 2, "--gpus", 1, "--walltime", "0:02:00", "--max-restarts", 0]
    submit(capsys, cluster, tmp_path / "job.sh", system, recipe, *words, "--tokens", tokens, "--run", run)
    cut, let_go, seen = set(), set(), {}

    def watch(number, pid, age_s):
        """Tell the script of the first slice, kill a rank of the second and fourth, and all of the third.

        The fifth is suspended until its end is near, so that no machine is fast enough to finish first.
        """
        job, slice_number = cluster.ran[-1], len(cluster.ran)
        if slice_number == 5 and number in cut and age_s > 95 and number not in let_go:
            let_go.add(number)
            for rank in cluster.ranks(job):
                os.kill(rank, signal.SIGCONT)
        if number in cut or slice_number > 5 or not (run / "metrics.jsonl").exists():
            return
        steps = (run / "metrics.jsonl").read_bytes().count(b"\n")
        seen[number] = min(seen.get(number, steps), steps)
        if steps < seen[number] + 25:
            return
        cut.add(number)
        if slice_number == 1:
            os.kill(pid, signal.SIGUSR1)
        elif slice_number == 5:
            for rank in cluster.ranks(job):
                os.kill(rank, signal.SIGSTOP)
        elif slice_number == 3:
            cluster.kill(job, signal.SIGKILL)
        else:
            os.kill(cluster.ranks(job)[0], signal.SIGKILL)

    cluster.drain(watch)
    assert (tmp_path / "run-job" / "FINISHED").read_text().startswith("all steps are done\n")
    assert len(cut) == 5
    assert len(cluster.ran) >= 6
    assert read_state(run) == ("finished", STEPS, "all steps are done")
    stops = [event["reason"] for event in events(run, "stopped")]
    assert stops[0] == "SIGUSR1"
    assert stops[1].startswith("the job ends (")  # told nothing, by what Slurm or PBS says of its end
    command = [sys.executable, "-m", "train", "run", tokens, tmp_path / "alone", "--recipe", recipe, "--nproc", "2"]
    subprocess.run(command, cwd=REPOSITORY, env=cluster.environment, check=True, capture_output=True)
    assert records(run) == records(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("system", ["slurm", pytest.param("pbs", marks=pytest.mark.long)])
def test_a_build_by_job_arrays_with_a_lost_node_has_the_bytes_of_one_in_one_piece(
    small_input, small_tokens, tokenizer_path, tmp_path, system
):
    cluster, out = Cluster(tmp_path / "spool", system), tmp_path / "out"
    words = [small_input, out, "--tasks", 3, "--walltime", "1:00", "--tokenizer", tokenizer_path, *OPTIONS]
    script = run_cli("preprocess", "launch", system, *words, "--workers", 1)
    assert script.returncode == 0, script.stderr
    (tmp_path / "job.sh").write_text(script.stdout)
    command = "sbatch" if system == "slurm" else "qsub"
    subprocess.run([command, tmp_path / "job.sh"], env=cluster.environment, check=True, capture_output=True)

    def watch(number, pid, age_s):
        if len(cluster.ran) == 1 and cluster.task == 2 and cluster.ranks(cluster.ran[0], b"tokenize"):
            cluster.kill(cluster.ran[0], signal.SIGKILL)

    cluster.drain(watch)
    assert (tmp_path / "out-job" / "FINISHED").read_text().startswith("the dataset is there\n")
    assert len(cluster.ran) == 2
    assert cluster.waiting() == []
    assert contents(out) == contents(small_tokens)
