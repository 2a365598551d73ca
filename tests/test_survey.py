import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

from preprocess import survey as surveying
from preprocess.__main__ import main
from preprocess.chunks import Chunks
from preprocess.survey import Bin, spread, survey
from preprocess.token_texts import TokenTexts
from shared.errors import FormatError
from shared.format import open_documents, open_tokens, read_index
from shared.storage import read_sealed, write_sealed
from tests.helpers import dataset_rows, plain_tokenizer


def test_all_ids_and_documents_are_counted(small_tokens):
    index, rows = read_index(small_tokens), [ids for _, _, ids in dataset_rows(small_tokens) if ids]
    found = survey(small_tokens, index)
    assert found.counts.tolist() == np.bincount(np.concatenate(rows), minlength=index.tokenizer.vocab_size).tolist()
    assert (found.has_all_ids, found.has_all_documents, found.problems) == (True, True, {})
    assert (found.num_ids, found.num_documents) == (index.num_tokens, len(rows))
    lengths = sorted(map(len, rows))
    assert (found.lengths.smallest, found.lengths.largest) == (lengths[0], lengths[-1])
    assert found.lengths.quantiles["0.5"] == lengths[(len(lengths) - 1) // 2]
    for bin_ in found.lengths.bins:
        assert bin_.count == sum(bin_.low <= length <= bin_.high for length in lengths)


def test_a_document_is_in_as_many_chunks_as_have_one_of_its_ids_as_an_input(small_tokens):
    index, numbers = read_index(small_tokens), []
    for shard in range(len(index.shards)):
        offsets = open_documents(small_tokens, index, shard).tolist()
        for begin, end in pairwise(offsets):
            if begin < end:
                numbers.append(len({place // index.chunk_length for place in range(begin, end)}))
    found = survey(small_tokens, index).chunks
    assert found.mean == pytest.approx(np.mean(numbers))
    assert (found.smallest, found.largest) == (min(numbers), max(numbers))
    for bin_ in found.bins:
        assert bin_.count == sum(bin_.low <= number <= bin_.high for number in numbers)


def test_of_a_large_dataset_a_sample_is_counted_that_the_seed_decides(small_tokens, monkeypatch):
    monkeypatch.setattr(surveying, "BLOCK_IDS", 512)
    monkeypatch.setattr(surveying, "MOST_IDS", 512 * 20)
    monkeypatch.setattr(surveying, "MOST_DOCUMENTS", 100)
    index = read_index(small_tokens)
    one, same, other = (survey(small_tokens, index, seed) for seed in (0, 0, 1))
    assert (one.has_all_ids, one.has_all_documents) == (False, False)
    assert 512 * 15 < one.num_ids <= 512 * 20
    assert 100 <= one.num_documents < 400
    assert one.counts.tolist() == same.counts.tolist() != other.counts.tolist()
    assert one.lengths == same.lengths != other.lengths
    whole = np.concatenate([open_tokens(small_tokens, index, shard) for shard in range(len(index.shards))])
    assert (one.counts <= np.bincount(whole, minlength=len(one.counts))).all()


def test_numbers_are_spread_over_bins_that_double():
    assert spread(np.array([1, 2, 3, 4, 7, 8, 1023, 1024])).bins == [
        *(Bin(1, 1, 1), Bin(2, 3, 2), Bin(4, 7, 2), Bin(8, 15, 1)),
        *(Bin(1 << i, (2 << i) - 1, 0) for i in range(4, 9)),
        *(Bin(512, 1023, 1), Bin(1024, 2047, 1)),
    ]
    assert spread(np.zeros(0, np.int64)) is None


def test_chunks_are_drawn_once_each_from_the_shards_that_are_there(small_tokens):
    index = read_index(small_tokens)
    chunks = Chunks(small_tokens, index, None)
    first, last = int(chunks.bounds[1]), int(chunks.bounds[2])
    assert chunks.drawn(10**9, 0, [1]) == list(range(first, last))
    drawn = chunks.drawn(50, 5, [0, 2])
    assert len(set(drawn)) == 50
    assert drawn == sorted(drawn) == chunks.drawn(50, 5, [0, 2]) != chunks.drawn(50, 6, [0, 2])
    assert not any(first <= number < last for number in drawn)
    assert chunks.drawn(5, 0, []) == []


def test_the_texts_of_tokens_are_the_text(small_tokens):
    tokenizer = plain_tokenizer(small_tokens)
    texts = TokenTexts(tokenizer)
    for text in ("caf\u00e9 \u6d77\u306f\u5e83\u3044 \U0001f30a\n\tx", " two  words", ""):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        spelled = texts.of(ids)
        assert "".join(token.text for token in spelled) == text
        assert len(spelled) == len(ids)
        assert all(token.is_part == (token.text == "") for token in spelled)
    sea = tokenizer.encode("\u6d77", add_special_tokens=False).ids
    assert "".join(token.text for token in texts.of(sea[:-1])).startswith("\\xe6")  # half a character is spelled out
    end = tokenizer.token_to_id("<|endoftext|>")
    assert texts.of([sea[0], end])[1] == ("<|endoftext|>", False, True)
    assert TokenTexts(None).of([7])[0].text == "[7]"


def test_what_was_verified_is_told_for_each_shard(small_tokens, tmp_path, capsys):
    tokens = shutil.copytree(small_tokens, tmp_path / "tokens")
    assert main(["inspect", str(tokens), "--verify"]) == 0
    assert "all files are as their checksums say" in " ".join(capsys.readouterr().out.split())
    data = bytearray((tokens / "00001.npy").read_bytes())
    data[-300] ^= 1
    (tokens / "00001.npy").write_bytes(data)
    assert main(["inspect", str(tokens), "--verify", "--json"]) == 0
    states = [shard["state"] for shard in json.loads(capsys.readouterr().out)["shards"]]
    assert "00001.npy does not match its checksum" in states[1]
    assert set(states[:1] + states[2:]) == {"as its checksums say"}
    assert main(["inspect", str(tokens)]) == 0  # what was not read is not vouched for
    assert "not verified" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.parquet", "a/../../b.parquet", "", "a\0b.parquet", ".."])
@pytest.mark.parametrize("where", ["sources", "skipped"])
def test_no_path_of_an_index_leads_out_of_a_directory(small_tokens, tmp_path, capsys, path, where):
    tokens = shutil.copytree(small_tokens, tmp_path / "tokens")
    document = read_sealed(tokens / "index.json")
    if where == "sources":
        document["sources"]["path"][1] = path
    else:
        document["skipped"] = [{"path": path, "size_bytes": 1, "reason": ""}]
    write_sealed(tokens / "index.json", document)
    with pytest.raises(FormatError, match="is no path within a directory: the index was not written by this release"):
        read_index(tokens)
    assert main(["inspect", str(tokens)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("path", ["a..b.parquet", "a/b/c..parquet", "...parquet"])
def test_dots_in_a_name_lead_nowhere(small_tokens, tmp_path, path):
    tokens = shutil.copytree(small_tokens, tmp_path / "tokens")
    document = read_sealed(tokens / "index.json")
    document["sources"]["path"][1] = path
    write_sealed(tokens / "index.json", document)
    assert read_index(tokens).sources[1].path == path


def test_a_sample_of_chunks_is_printed_and_given_to_programs(small_tokens, capsys):
    assert main(["inspect", str(small_tokens), "--sample", "3", "--seed", "2"]) == 0
    shown = capsys.readouterr().out
    assert main(["inspect", str(small_tokens), "--sample", "3", "--seed", "2", "--json"]) == 0
    chunks = json.loads(capsys.readouterr().out)
    assert len(chunks) == 3
    for chunk in chunks:
        assert f"chunk {chunk['number']:,}: offset" in shown
    assert main(["inspect", str(small_tokens), "--sample", "3", "--seed", "3"]) == 0
    assert capsys.readouterr().out != shown
