"""What the README and the Makefile say about the repository is true."""

import re
import subprocess

import pytest

from tests.helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
AGREED = {"preprocess", "train", "shared", "tests", "Makefile", "pyproject.toml", "README.md"}


def make(*arguments: str) -> str:
    """What make prints, in an environment that a calling make has left no mark on."""
    command = ["env", "-u", "MAKEFLAGS", "-u", "MAKELEVEL", "-u", "PY", "make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


def tracked() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(listed.stdout.split())


def test_the_top_level_is_the_agreed_one():
    tops = {path.split("/")[0] for path in tracked()}
    assert {top for top in tops if not top.startswith(".")} == AGREED


@pytest.mark.parametrize("package", ["preprocess", "train", "shared"])
def test_the_readme_names_every_module_of_a_package_and_no_other(package):
    tree = README.split("## The tree")[1]
    section = re.search(rf"^{package}/.*?(?=^\w+/|^```$)", tree, re.DOTALL | re.MULTILINE)[0]
    named = set(re.findall(r"(\w+\.py)", section))
    found = {path.name for path in (REPOSITORY / package).glob("*.py")} - {"__init__.py"}
    assert named == found


def test_every_test_file_that_the_readme_names_exists():
    for name in re.findall(r"`(tests/\w+\.py)`", README):
        assert (REPOSITORY / name).is_file(), name


def test_every_picture_in_the_readme_is_here_and_small():
    pictures = re.findall(r'<img src="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', README)
    assert pictures
    for path in map("".join, pictures):
        assert path in tracked()
        assert (REPOSITORY / path).stat().st_size < 150_000, path


def test_make_help_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert [line.split()[0] for line in make("help").splitlines()] == targets


def test_make_without_a_target_helps():
    assert make() == make("help")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["tokenize"], '"../data/CC-MAIN-2025-26" "../data/CC-MAIN-2025-26-tokens" --chunk-length 2048'),
        (["tokenize", "DATA=x/", "CHUNK_LENGTH=64"], '"x/" "x-tokens" --chunk-length 64'),
        (["tokenize", "DATA=x/*.parquet"], '"x/*.parquet" "x-tokens"'),
        (["tokenize", "DATA=x/*.jsonl"], '"x/*.jsonl" "x-tokens"'),
        (["tokenize", "DATA=x/*.jsonl.zst"], '"x/*.jsonl.zst" "x-tokens"'),
        (["tokenize", "TOKENIZER=t.json", "VOCAB_SIZE=512"], '--tokenizer "t.json" --vocab-size 512'),
        (["inspect", "TOKENS=t", "CHUNK=7", "ARGS=--json"], 'inspect "t" --chunk 7 --json'),
        (["inspect", "TOKENS=t", "ARGS=--html page.html"], 'inspect "t" --html page.html'),
        (["pack", "TOKENS=t"], 'pack "t" --length 2048 --method best-fit'),
        (
            ["pack", "TOKENS=t", "LENGTH=64", "METHOD=whole", "ARGS=--workers 1"],
            "--length 64 --method whole --workers 1",
        ),
        (["train-fsdp", "TOKENS=t", "NPROC=4"], 'run "t" "../runs/tiny" --recipe "tiny" --nproc 4 --strategy fsdp'),
        (["train-pipeline", "RECIPE=a/b.toml"], '"../runs/b" --recipe "a/b.toml" --strategy pipeline'),
        (["train-fsdp", "ARGS=--stop-step 5"], "--strategy fsdp --stop-step 5"),
        (["resume", "FROM=o.pth", "HEADS=16", "TOKENS=t", "RUN=r"], 'import "o.pth" "r" --recipe "tiny" --heads 16'),
        (["resume", "FROM=o.pth", "TOKENS=t", "RUN=r", "NPROC=1"], 'run "t" "r" --recipe "r/recipe.toml" --nproc 1'),
        (["export", "RUN=r", "ARGS=--dtype bf16"], 'export "r" "r-hf" --dtype bf16'),
        (["plan"], 'plan "tiny" --gpus 4'),
        (["plan", "RECIPE=1b", "GPUS=64", "ARGS=--walltime 8:00"], 'plan "1b" --gpus 64 --walltime 8:00'),
        (["trace", "RUN=r", "STEP=3..5", "ARGS=--text"], 'train trace --run "r" --step 3..5 --text'),
        (["trace", "RUN=r", "DOC=a b"], 'train trace --run "r" --doc "a b"'),
        (["chaos"], '-m tests.chaos --data-dir ".." --kills 50'),
        (["chaos", "CHAOS=d", "KILLS=5", "ARGS=--only bits"], '--data-dir "d" --kills 5 --only bits'),
    ],
)
def test_a_make_variable_reaches_its_command(arguments, command):
    assert command in " ".join(make("-n", "PY=python3", *arguments).replace("\\\n", "").split())


def test_py_uses_the_callers_environment_and_sets_up_nothing():
    assert "venv" not in make("-n", "PY=python3", "test")
