"""Who may know whom: preprocess -> shared <- train, checked by what an import really loads."""

import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY


def loaded_by(*modules: str) -> set[str]:
    """Top-level modules in sys.modules after importing `modules` in a fresh process."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def modules_of(package: str) -> list[str]:
    """All but what is run, or copied into an exported folder for `transformers`."""
    names = sorted(path.stem for path in (REPOSITORY / package).glob("*.py"))
    return [f"{package}.{name}" for name in names if name not in ("__main__", "modeling_argonne")]


@pytest.mark.parametrize(
    ("package", "strangers"),
    [
        ("preprocess", {"torch", "train"}),
        ("train", {"pyarrow", "polars", "tokenizers", "preprocess"}),
        ("shared", {"torch", "pyarrow", "polars", "tokenizers", "preprocess", "train"}),
    ],
)
def test_a_package_never_loads_what_is_not_its_business(package, strangers):
    assert not loaded_by(*modules_of(package)) & strangers


def test_a_command_line_loads_no_more_than_its_package():
    assert not loaded_by("preprocess.__main__") & {"torch", "train", "pyarrow", "polars", "tokenizers"}  # help is quick
    assert not loaded_by("train.commands") & {"pyarrow", "polars", "tokenizers", "preprocess"}
