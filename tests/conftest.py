"""Real text for the tests: the shared data where it is there, else what this Python installation carries."""

import os
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.helpers import REPOSITORY, read_column, write_parquet

SHARED_DATA = REPOSITORY.parent / "shared" / "data"


def has_shared_data() -> bool:
    return SHARED_DATA.is_dir() and os.environ.get("ARGONNE_NO_SHARED_DATA") != "1"


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that two workers end together."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow_files)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache directory of this test run: nothing of the user's is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def memory_path(tmp_path_factory) -> Iterator[Path]:
    """A directory in memory, where there is such a disk: what a thousand processes write and sync costs no time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("work")
        return
    with TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """A process group of this process alone."""
    from tests.train_helpers import group_of_one

    with group_of_one():
        yield


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> list[Path]:
    """Parquet files of real text."""
    if has_shared_data():
        return sorted((SHARED_DATA / "CC-MAIN-2025-26").glob("*.parquet"))
    from preprocess.corpus import sample_corpus

    directory = tmp_path_factory.mktemp("harvest") / "corpus"
    sample_corpus(directory, 4_000_000)
    return sorted(directory.glob("*.parquet"))


@pytest.fixture(scope="session")
def bad_data() -> Path:
    """A directory of broken, odd and unusual files."""
    if not has_shared_data():
        pytest.skip("needs ../shared/data/bad")
    return SHARED_DATA / "bad"


@pytest.fixture(scope="session")
def real_texts(real_data) -> list[str]:
    """400 real documents of moderate length."""
    texts = [text for path in real_data[:3] for text in read_column(path) if len(text) < 20_000]
    return list(islice(cycle(texts), 400))


@pytest.fixture(scope="session")
def small_input(real_texts, tmp_path_factory) -> Path:
    """A directory of two parquet files with 200 real documents each, in row groups of 25."""
    directory = tmp_path_factory.mktemp("input")
    write_parquet(directory / "000_00009.parquet", real_texts[:200], rows_per_group=25)
    write_parquet(directory / "000_00010.parquet", real_texts[200:], rows_per_group=25)
    return directory


@pytest.fixture(scope="session")
def small_tokens(small_input, tmp_path_factory) -> Path:
    """A finished dataset of `small_input`: vocabulary 2,048, chunk length 64, several shards."""
    from preprocess.build import build
    from preprocess.config import BuildSettings, TokenizerSettings

    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    build(str(small_input), directory, BuildSettings(64, "text", 100_000), TokenizerSettings(vocab_size=2048))
    return directory


@pytest.fixture(scope="session")
def tokenizer_path(small_tokens) -> Path:
    """A small trained tokenizer.json."""
    return small_tokens / "tokenizer.json"
