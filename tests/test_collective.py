"""What ranks say to each other outside of the model, and how they leave."""

import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY
from train.collective import any_rank, gather, rank, step_seed, world_size

LEAVE = (
    "import atexit; from train.collective import leave; atexit.register(print, 'torn down'); print('said'); leave({})"
)


def test_a_process_without_a_group_is_a_group_of_one():
    assert (rank(), world_size(), gather("x"), any_rank(True), any_rank(False)) == (0, 1, ["x"], True, False)


@pytest.mark.parametrize("code", [0, 2])
def test_a_rank_leaves_with_its_exit_code_and_its_words_but_without_a_teardown(code):
    program = [sys.executable, "-c", LEAVE.format(code)]
    ended = subprocess.run(program, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (code, "said\n")


def test_every_seed_and_step_has_random_numbers_of_its_own():
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400
    assert step_seed(3, 4) == step_seed(3, 4)
