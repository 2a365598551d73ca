import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

MODULES = sorted(f"preprocess.{path.stem}" for path in (REPOSITORY / "preprocess").glob("[!_]*.py"))


def loaded_after(*modules):
    program = f"import {', '.join(modules)}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_preprocess_loads_neither_torch_nor_train():
    assert not {"torch", "train"} & loaded_after("preprocess.__main__", *MODULES)


@pytest.mark.parametrize("heavy", ["pyarrow", "polars", "tokenizers"])
def test_the_command_line_starts_without_heavy_imports(heavy):
    assert heavy not in loaded_after("preprocess.__main__")
