"""Where an old run was in its data becomes a chunk of a dataset that was made of the same files, or is refused."""

import pytest

from shared.errors import ConfigError, FormatError
from shared.format import read_index
from shared.storage import read_sealed
from tests.old_argonne import OldModel, save
from tests.train_helpers import write_documents
from train.commands import main
from train.data_config import DataConfig
from train.data_sources import DataSource
from train.legacy_place import NO_PLACE, place_of
from train.run_files import IMPORTED_NAME

NATURAL = DataConfig(sequence_length=16, order="natural")
MIXED = DataConfig(sequence_length=16, order="natural", sources=[DataSource("web", 1.0)])


def position(file, row, processed=()):
    return {"streaming": True, "current_file_idx": file, "position_in_file": row, "files_processed": list(processed)}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """One file, a.parquet, of 7 rows in two shards."""
    directory = tmp_path_factory.mktemp("tokens")
    write_documents(directory, [[10, 0, 30, 20], [5, 40, 9]])
    return directory


@pytest.mark.parametrize(
    ("row", "cursor"),
    [
        (0, (0, 0, 0)),
        (1, (0, 0, 0)),  # an empty row, where the third begins: token 10
        (3, (0, 0, 2)),  # token 40
        (4, (0, 1, 0)),
        (6, (0, 1, 2)),  # token 45
    ],
)
def test_a_row_becomes_the_chunk_in_which_it_begins(tokens, row, cursor):
    place = place_of(position(0, row), tokens, NATURAL)
    assert (place.cursor, place.dataset) == (cursor, read_index(tokens).fingerprint)


@pytest.mark.parametrize(
    ("told", "data", "problem"),
    [
        (None, NATURAL, "does not tell where it was in its data"),
        (position(0, 0), DataConfig(sequence_length=16), "this one is to be shuffled"),
        (position(0, 0), MIXED, r"this recipe mixes several: leave --tokens out, to begin in front, or leave data\.s"),
        (position(1, 0), NATURAL, "was at row 0 of file 1, .* is of 1 files"),
        (position(0, 0, ["/x/b.parquet"]), NATURAL, r"file 0 of the old run was /x/b\.parquet, .* is a\.parquet"),
    ],
)
def test_a_place_that_is_none_in_the_dataset_is_refused(tokens, told, data, problem):
    with pytest.raises(ConfigError, match=problem):
        place_of(told, tokens, data)


def test_a_row_that_is_not_there_is_refused(tokens):
    with pytest.raises(FormatError, match="has no row 7 in the dataset"):
        place_of(position(0, 7), tokens, NATURAL)


def test_what_becomes_of_the_place_is_told_and_kept(tmp_path, capsys):
    model = OldModel(vocab_size=64, block_size=16, n_layer=1, n_head=2, n_embd=8)
    path = save(tmp_path / "old.pth", model.state_dict(), data_position=position(0, 4))
    sizes = ["--data.sequence-length", "16", "--data.global-batch", "4", "--training.microbatch", "1"]
    assert main(["import", str(path), str(tmp_path / "run"), "--heads", "2", *sizes], None) == 0
    assert NO_PLACE in capsys.readouterr().out
    assert NO_PLACE in read_sealed(tmp_path / "run" / IMPORTED_NAME)["notes"]
