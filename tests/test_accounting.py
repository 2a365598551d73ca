import re
import shutil
from dataclasses import replace

import pytest

from preprocess.accounting import check_accounts, problems
from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from shared.errors import FormatError
from shared.format import read_index
from shared.storage import read_sealed, write_sealed


def test_a_finished_dataset_adds_up(small_tokens):
    index = read_index(small_tokens)
    assert list(problems(index)) == []
    check_accounts(index)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_documents": -1}, "rows, but .* documents, 0 null, 0 empty, 0 filtered, 0 duplicate, 0 other split, "),
        ({"num_null": 1}, "rows, but .* documents, 1 null, 0 empty, "),
        ({"num_filtered": 3}, "rows, but .* documents, 0 null, 0 empty, 3 filtered, 0 duplicate, "),
        ({"num_duplicate": 4}, "rows, but .* 0 filtered, 4 duplicate, 0 other split, 0 skipped make "),
        ({"num_other_split": 5}, "rows, but .* 0 duplicate, 5 other split, 0 skipped make "),
        ({"num_skipped": 2}, "rows, but .* 0 other split, 2 skipped make "),
        ({"read_bytes": 1}, r"shard 1 read \S+ bytes of text, but \S+ behind its tokens and 0 rejected"),
        ({"rejected_bytes": 7}, r"shard 1 read \S+ bytes of text, but \S+ behind its tokens and 7 rejected"),
        ({"num_tokens": -(10**9)}, r"shard 1 has -\S+ tokens and \S+ bytes of text behind \S+ documents"),
        ({"text_bytes": -(10**9)}, r"shard 1 has \S+ tokens and -\S+ bytes of text behind \S+ documents"),
        ({"first_row": 1}, r"shard 1 begins at row \d+, not at \d+"),
        ({"num_rows": 1, "num_empty": 1}, "000_00009.parquet has 200 rows, its shards 201"),
    ],
)
def test_every_sum_that_does_not_add_up_is_told(small_tokens, change, told):
    index = read_index(small_tokens)
    shard = index.shards[1]
    changed = replace(shard, **{name: getattr(shard, name) + by for name, by in change.items()})
    shards = [*index.shards[:1], changed, *index.shards[2:]]
    with pytest.raises(FormatError, match=r"the sums do not add up: .*: delete the shards of that input"):
        check_accounts(replace(index, shards=shards))
    assert any(re.search(told, problem) for problem in problems(replace(index, shards=shards)))


def test_tokens_of_no_document_are_told(small_tokens):
    index = read_index(small_tokens)
    shard = index.shards[0]
    changed = replace(shard, num_documents=0, num_empty=shard.num_documents)
    told = list(problems(replace(index, shards=[changed, *index.shards[1:]])))
    assert told == [f"shard 0 has {shard.num_tokens:,} tokens of no document"]


def test_a_build_whose_sums_do_not_add_up_fails(small_input, small_tokens, tokenizer_path, tmp_path):
    shutil.copytree(small_tokens, tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    receipt = read_sealed(tmp_path / "out/00001.json")
    write_sealed(tmp_path / "out/00001.json", {**receipt, "num_documents": receipt["num_documents"] - 1})
    with pytest.raises(FormatError, match="the sums do not add up: shard 1 has "):
        build(str(small_input), tmp_path / "out", BuildSettings(64, "text", 100_000), TokenizerSettings())
    assert not (tmp_path / "out/index.json").exists()
