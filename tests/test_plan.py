import pytest

from preprocess.config import BuildSettings
from preprocess.plan import differences, make_plan, plan_shards
from preprocess.sources import Footer, RowGroup
from shared.errors import ConfigError
from shared.format import TokenizerIdentity

TOKENIZER = TokenizerIdentity("ab" * 32, 300, "<|endoftext|>", 0, [])


def footer(*groups, path="a.parquet", identity="x"):
    row_groups = tuple(RowGroup(rows, size) for rows, size in groups)
    return Footer(path, 99, sum(rows for rows, _ in groups), identity, row_groups)


@pytest.mark.parametrize(
    ("footers", "shards"),
    [
        ([], []),
        ([footer()], []),  # no row groups
        ([footer((0, 0))], []),  # no rows
        ([footer((10, 50))], [(0, 0, 1, 0, 10)]),
        ([footer((10, 50), (10, 50), (10, 50))], [(0, 0, 2, 0, 20), (0, 2, 1, 20, 10)]),
        ([footer((10, 500), (10, 50))], [(0, 0, 1, 0, 10), (0, 1, 1, 10, 10)]),
        ([footer((5, 60), (0, 0), (5, 60))], [(0, 0, 3, 0, 10)]),  # an empty row group in between
        ([footer((5, 100), (0, 0))], [(0, 0, 1, 0, 5)]),  # an empty row group behind
        ([footer((1, 9)), footer(), footer((1, 9))], [(0, 0, 1, 0, 1), (2, 0, 1, 0, 1)]),  # never across files
    ],
)
def test_a_shard_is_the_fewest_row_groups_of_one_file_with_100_bytes(footers, shards):
    planned = plan_shards(footers, 100)
    found = [
        (shard.source, shard.first_row_group, shard.num_row_groups, shard.first_row, shard.num_rows)
        for shard in planned
    ]
    assert found == shards
    assert [shard.number for shard in planned] == list(range(len(shards)))


@pytest.mark.parametrize(
    ("footers", "settings", "tokenizer", "phrase"),
    [
        ([footer((1, 9))], BuildSettings(17), TOKENIZER, "chunk length: found 2048, wanted 17"),
        ([footer((1, 9))], BuildSettings(text_column="body"), TOKENIZER, "text column: found text, wanted body"),
        ([footer((1, 9))], BuildSettings(shard_bytes=5), TOKENIZER, "shard bytes: found 268435456, wanted 5"),
        (
            [footer((1, 9))],
            BuildSettings(),
            TokenizerIdentity("cd" * 32, 300, "<|endoftext|>", 0, []),
            "tokenizer: found sha256 abababababab, wanted sha256 cdcdcdcdcdcd",
        ),
        (
            [footer((1, 9))],
            BuildSettings(),
            TokenizerIdentity("ab" * 32, 300, "</s>", 7, []),
            "end-of-document id: found 0, wanted 7",
        ),
        ([footer((1, 9)), footer((2, 9))], BuildSettings(), TOKENIZER, "inputs: found 1 files with 1 rows, sha256 "),
        ([footer((1, 9), identity="y")], BuildSettings(), TOKENIZER, "inputs: found 1 files with 1 rows, sha256 "),
    ],
)
def test_whatever_changes_the_bytes_changes_the_identity_and_is_told(footers, settings, tokenizer, phrase):
    usual, other = make_plan([footer((1, 9))], BuildSettings(), TOKENIZER), make_plan(footers, settings, tokenizer)
    assert usual.identity != other.identity
    (told,) = differences(usual.settings, other.settings)
    assert told.startswith(phrase)


def test_the_same_input_gives_the_same_identity():
    plans = [make_plan([footer((1, 9))], BuildSettings(), TOKENIZER) for _ in range(2)]
    assert plans[0].identity == plans[1].identity
    assert differences(plans[0].settings, plans[1].settings) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"chunk_length": 0}, "--chunk-length is 0: at least 1 token"),
        ({"shard_bytes": 0}, "--shard-megabytes is too small"),
        ({"text_column": ""}, "--text-column is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        BuildSettings(**option)
