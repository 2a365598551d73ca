import dataclasses
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest

from preprocess.__main__ import main
from preprocess.build import build
from preprocess.chunks import read_chunk
from preprocess.config import BuildSettings, PackSettings, TokenizerSettings
from preprocess.pack import pack
from preprocess.verify import verify
from shared.arrays import write_array
from shared.errors import ConfigError
from shared.format import Selection, open_tokens, read_index
from shared.packing import PackingName, pieces_path, read_packing, write_packing
from shared.storage import read_sealed, write_sealed
from tests.helpers import REPOSITORY, dataset_rows, read_column, run_cli, write_parquet

HOSTILE = (
    "title\x1b]0;owned\x07 \x1b[2J\x9b31m\rfake\u202ereversed\u2066 \x00 [bold]not markup[/bold] \U000e0041\nsecond"
)


@pytest.fixture
def damaged(small_tokens, tmp_path):
    """A copy of the small dataset to damage."""
    return shutil.copytree(small_tokens, tmp_path / "tokens")


def shows_no_control(text):
    return all(char.isprintable() or char == "\n" for char in text)


def test_the_table_and_the_json_say_what_is_in_the_index(small_tokens, real_texts):
    index = read_index(small_tokens)
    shown = run_cli("preprocess", "inspect", small_tokens)
    assert (shown.returncode, shown.stderr) == (0, "")
    for fact in (index.fingerprint, f"{index.num_tokens:,}", "uint16", "000_00009.parquet", "<|endoftext|> = 0", "64"):
        assert fact in shown.stdout
    document = json.loads(run_cli("preprocess", "inspect", small_tokens, "--json").stdout)
    assert document["fingerprint"] == index.fingerprint
    assert document["totals"]["num_tokens"] == index.num_tokens
    assert document["totals"]["text_bytes"] == sum(len(text.encode()) for text in real_texts)
    assert [source["num_documents"] for source in document["sources"]] == [200, 200]
    assert sum(source["num_shards"] for source in document["sources"]) == len(index.shards)


def test_the_table_and_the_json_say_what_packings_there_are(damaged, capsys):
    pack(damaged, PackSettings(64))
    packing = pack(damaged, PackSettings(128, "whole"))
    (damaged / "packings/best-fit-7").mkdir()
    capsys.readouterr()
    assert main(["inspect", str(damaged)]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        r"packing best-fit-64 +[\d,]+ chunks of 64, [\d,]+ pieces, 0\.\d{3}% padding, no token left out", shown
    )
    left_out = f"{packing.total('num_left_out'):,} documents with {packing.total('tokens_left_out'):,} tokens left out"
    assert re.search(
        rf"packing whole-128 +[\d,]+ chunks of 128, [\d,]+ pieces, \d+\.\d{{3}}% padding, {left_out}", shown
    )
    assert re.search(r"packing best-fit-7 +cannot be used: .*best-fit-7 is still being made", shown)
    assert main(["inspect", str(damaged), "--json"]) == 0
    found = {(p["method"], p["length"]): p for p in json.loads(capsys.readouterr().out)["packings"]}
    assert found.keys() == {("best-fit", 7), ("best-fit", 64), ("whole", 128)}
    assert found["whole", 128]["fingerprint"] == packing.fingerprint
    assert found["whole", 128]["totals"]["num_chunks"] == packing.total("num_chunks")
    index = read_index(damaged)
    num_targets = index.num_tokens - sum(shard.num_documents for shard in index.shards)
    assert found["best-fit", 64]["totals"]["num_targets"] == num_targets
    assert "is still being made" in found["best-fit", 7]["problem"]


def test_every_chunk_shows_its_documents_with_their_rows(small_tokens):
    rows = {(path, row): ids for path, row, ids in dataset_rows(small_tokens)}
    index = read_index(small_tokens)
    last = sum(shard.num_chunks for shard in index.shards) - 1
    for number in {0, 1, index.shards[0].num_chunks - 1, index.shards[0].num_chunks, last}:
        chunk = read_chunk(small_tokens, number)
        tokens = open_tokens(small_tokens, index, chunk.shard)
        start = chunk.offset * 64
        assert chunk.ids == tokens[start : start + 65].tolist()
        assert list(chain.from_iterable(piece.ids for piece in chunk.documents)) == chunk.ids[: 65 - chunk.num_padding]
        for piece in chunk.documents:
            whole = rows[piece.source, piece.row]
            assert piece.ids == whole[piece.start : piece.stop]
            assert piece.num_tokens == len(whole)


def test_a_chunk_is_shown_as_text_and_as_json(small_tokens, small_input):
    shown = run_cli("preprocess", "inspect", small_tokens, "--chunk", 0)
    assert shown.stdout.startswith(
        "chunk 0: offset 0 of shard 0, 65 ids\n\ndocument 000_00009.parquet row 0: tokens 0 to "
    )
    document = json.loads(run_cli("preprocess", "inspect", small_tokens, "--chunk", 0, "--json").stdout)
    text = read_column(small_input / "000_00009.parquet")[0]
    assert text.startswith(document["documents"][0]["text"].rstrip("\ufffd").removesuffix("<|endoftext|>"))


def test_padding_is_shown(tmp_path, tokenizer_path, capsys):
    write_parquet(tmp_path / "in/a.parquet", ["a", None, "", "b"])
    build(str(tmp_path / "in"), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    chunk = read_chunk(tmp_path / "out", 0)
    assert [(piece.row, piece.text) for piece in chunk.documents] == [(0, "a<|endoftext|>"), (3, "b<|endoftext|>")]
    assert main(["inspect", str(tmp_path / "out"), "--chunk", "0"]) == 0
    assert "padding: 61 end-of-document ids, never a target" in capsys.readouterr().out


@pytest.mark.parametrize("number", [-1, 10**9])
def test_a_chunk_that_is_not_there_is_refused_with_the_range(small_tokens, number):
    with pytest.raises(ConfigError, match=r"--chunk is .*; 0 to [\d,]+ is wanted: .* has [\d,]+"):
        read_chunk(small_tokens, number)


def test_a_dataset_without_chunks_has_no_chunk_to_show(tmp_path, tokenizer_path):
    write_parquet(tmp_path / "in/a.parquet", ["", "a"], rows_per_group=1)
    build(str(tmp_path / "in"), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    assert len(read_chunk(tmp_path / "out", 0).documents) == 1
    with pytest.raises(ConfigError, match="--chunk is 1; 0 to 0 is wanted"):
        read_chunk(tmp_path / "out", 1)


def test_hostile_text_and_names_reach_a_terminal_without_control_characters(tmp_path, tokenizer_path):
    name = "a\x1b[31m\u202e[red].parquet"
    write_parquet(tmp_path / "in" / name, [HOSTILE])
    done = run_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "out", "--tokenizer", tokenizer_path)
    assert done.returncode == 0
    table = run_cli("preprocess", "inspect", tmp_path / "out").stdout
    chunk = run_cli("preprocess", "inspect", tmp_path / "out", "--chunk", 0).stdout
    for shown in (done.stdout, table, chunk):
        assert shows_no_control(shown)
    assert r"a\x1b[31m\u202e[red].parquet" in table
    assert r"title\x1b]0;owned\x07 \x1b[2J\x9b31m\rfake\u202ereversed\u2066 \x00 [bold]not markup[/bold]" in chunk
    assert "\n      | second" in chunk


def test_a_real_terminal_gets_a_table_and_nothing_from_the_text(tmp_path, tokenizer_path):
    write_parquet(tmp_path / "in/a\x1b[2J.parquet", [HOSTILE])
    build(str(tmp_path / "in"), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "preprocess", "inspect", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # how Linux tells the end of a pseudo-terminal
            break
        if not piece:
            break
        shown += piece
    assert process.wait() == 0
    assert b"\x1b[2J" not in shown
    assert b"a\\x1b[2J.parquet" in shown


def test_a_long_list_of_inputs_is_cut_in_the_middle(tmp_path, tokenizer_path, capsys):
    for number in range(45):
        write_parquet(tmp_path / f"in/{number}.parquet", ["a b c"])
    build(str(tmp_path / "in"), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    assert main(["inspect", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "... 5 more (all of them with --json)" in shown
    assert " 19.parquet" in shown
    assert " 20.parquet" not in shown
    assert " 25.parquet" in shown


def test_a_whole_dataset_is_found_whole(small_tokens):
    done = run_cli("preprocess", "verify", small_tokens)
    assert (done.returncode, done.stderr) == (0, "")
    assert "GB/s" in done.stdout
    assert f"is whole: fingerprint {read_index(small_tokens).fingerprint}" in done.stdout


def flip(path, place, bits=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda tokens: flip(tokens / "00001.npy", -200), "00001.npy does not match its checksum: delete 00001.*"),
        (lambda tokens: flip(tokens / "00000.npy", -1, 255), "00000.npy holds id "),
        (lambda tokens: flip(tokens / "00001.documents.npy", 140), "00001.documents.npy does not match its checksum"),
        (lambda tokens: flip(tokens / "00001.documents.npy", -8), "00001.documents.npy runs from 0 to "),
        (lambda tokens: os.truncate(tokens / "00001.npy", 1000), "00001.npy is 1,000 bytes; "),
        (lambda tokens: (tokens / "00002.npy").unlink(), "00002.npy is missing: delete 00002.*"),
        (lambda tokens: flip(tokens / "tokenizer.json", 5), "tokenizer.json does not match its checksum: run "),
        (lambda tokens: (tokens / "tokenizer.json").unlink(), "tokenizer.json is missing: run "),
        (lambda tokens: (tokens / "00001.json").unlink(), "00001.json is missing: delete 00001.*"),
        (lambda tokens: (tokens / "00001.json").write_text("{"), "00001.json is not valid JSON"),
        (lambda tokens: write_sealed(tokens / "00001.json", {"tokens_sha256": ""}), "00001.json is of another shard"),
    ],
)
def test_every_damage_is_one_line_and_exit_code_2(damaged, capsys, damage, told):
    damage(damaged)
    assert main(["verify", str(damaged)]) == 2
    captured = capsys.readouterr()
    assert f"{damaged}/{told}" in captured.out
    assert "is damaged (" in captured.err
    assert captured.err.count("\n") == 1


def test_packings_are_verified_too(damaged, capsys):
    for method in ("best-fit", "whole"):
        pack(damaged, PackSettings(64, method))
    (damaged / "packings/best-fit-7").mkdir()  # not finished, so none
    num_files = len([path for path in damaged.rglob("*") if path.suffix in (".npy", ".json")])
    capsys.readouterr()
    verify(damaged)
    out = capsys.readouterr().out
    assert f"{damaged}: read {num_files} files: 0." in out


def test_the_texts_kept_apart_are_verified_too(small_input, tokenizer_path, tmp_path, capsys):
    selection = Selection(validation_share=0.2)
    settings = BuildSettings(64, "text", 100_000, selection=selection)
    build(str(small_input), tmp_path / "out", settings, TokenizerSettings(str(tokenizer_path)))
    verify(tmp_path / "out")
    flip(tmp_path / "out/validation/00001.npy", -200)
    (tmp_path / "out/validation/00000.json").unlink()
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert "validation/00001.npy does not match its checksum: delete 00001.* there and run `make tok" in captured.out
    assert "validation/00000.json is missing: delete" in captured.out
    (tmp_path / "out/validation/index.json").unlink()
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "validation is still being built (no index.json)" in capsys.readouterr().out


def lose_a_piece(directory):
    """What no checksum can find: an index that vouches for arrays in which a piece stands where another should."""
    name = PackingName(directory, "whole", 64)
    packing = read_packing(name, read_index(directory))
    pieces = np.load(pieces_path(name.directory, 1))
    pieces["start"][3] = pieces["start"][2]
    shards = packing.shards
    shards[1] = dataclasses.replace(shards[1], pieces_sha256=write_array(pieces_path(name.directory, 1), pieces))
    write_packing(name, packing)
    receipt = read_sealed(name.directory / "00001.json")
    write_sealed(name.directory / "00001.json", {**receipt, "pieces_sha256": shards[1].pieces_sha256})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda packing: flip(packing / "00001.pieces.npy", -9),
            "00001.pieces.npy does not match its checksum: delete",
        ),
        (
            lambda packing: flip(packing / "00000.chunks.npy", -1),
            "00000.chunks.npy does not match its checksum: delete",
        ),
        (lambda packing: os.truncate(packing / "00001.chunks.npy", 200), "00001.chunks.npy is 200 bytes; "),
        (lambda packing: (packing / "00002.pieces.npy").unlink(), "00002.pieces.npy is missing: delete 00002.*"),
        (lambda packing: (packing / "index.json").write_text("{"), "index.json is not valid JSON"),
        (lambda packing: flip(packing / "00002.json", 40), "00002.json does not match its own checksum"),
        (lambda packing: (packing / "00002.json").unlink(), "00002.json is missing: delete 00002.*"),
        (
            lambda packing: shutil.copy(packing / "00001.json", packing / "00002.json"),
            "00002.json is of another shard than the index: delete 00002.*",
        ),
        (
            lambda packing: lose_a_piece(packing.parent.parent),
            "00001.pieces.npy does not hold every target of its documents once: delete 00001.* there and run ",
        ),
    ],
)
def test_every_damage_to_a_packing_is_told_and_packing_again_mends_it(damaged, capsys, damage, told):
    pack(damaged, PackSettings(64, "whole"))
    packing = damaged / "packings/whole-64"
    damage(packing)
    capsys.readouterr()
    assert main(["verify", str(damaged)]) == 2
    captured = capsys.readouterr()
    assert f"{packing}/{told}" in captured.out
    assert "is damaged (1 problems, listed above)" in captured.err
    for path in packing.glob(f"{told[:5]}.*"):
        path.unlink()
    pack(damaged, PackSettings(64, "whole"))
    verify(damaged)


def test_a_packing_of_another_dataset_is_a_problem(damaged, capsys):
    pack(damaged, PackSettings(64))
    document = json.loads((damaged / "index.json").read_bytes())
    write_sealed(damaged / "index.json", {**document, "text_column": "other"})
    capsys.readouterr()
    assert main(["verify", str(damaged)]) == 2
    assert "best-fit-64/index.json is of dataset " in capsys.readouterr().out


def test_ids_that_a_release_of_tokenizers_no_longer_gives_are_found(damaged, capsys):
    document = json.loads((damaged / "index.json").read_bytes())
    document["tokenizer"]["golden"][0]["ids"][0] += 1
    write_sealed(damaged / "index.json", document)
    assert main(["verify", str(damaged)]) == 2
    assert "tokenizer.json no longer gives the ids it gave: install the release" in capsys.readouterr().out


def test_ids_that_do_not_spell_the_bytes_of_the_index_are_found(damaged, capsys):
    document = json.loads((damaged / "index.json").read_bytes())
    text_bytes = document["shards"]["text_bytes"][1]
    document["shards"]["text_bytes"][1] += 1
    write_sealed(damaged / "index.json", document)
    assert main(["verify", str(damaged)]) == 2
    told = f"00001.npy spells {text_bytes:,} bytes of text, the index says {text_bytes + 1:,}: delete 00001.*"
    assert told in capsys.readouterr().out


def test_a_damaged_index_is_one_line(damaged, capsys):
    flip(damaged / "index.json", 40)
    assert main(["verify", str(damaged)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_verify_advises_mends_the_dataset(damaged, small_input, tokenizer_path):
    flip(damaged / "00001.npy", -200)
    for path in damaged.glob("00001.*"):
        path.unlink()
    settings = BuildSettings(64, "text", 100_000)
    build(str(small_input), damaged, settings, TokenizerSettings(str(tokenizer_path)))
    verify(damaged)
