import hashlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import lines as lines_module
from preprocess import streams
from preprocess.footer import BadFileError
from preprocess.lines import Lines, lines_from
from preprocess.streams import Plain, Zstd
from tests.helpers import zstd

KINDS = {"plain": (Plain, "a.jsonl"), "one frame": (Zstd, "a.jsonl.zst"), "frames of 7": (Zstd, "b.jsonl.zst")}


def write(directory, kind, content):
    """A file of this kind that holds `content`."""
    path = directory / KINDS[kind][1]
    size = {"plain": 0, "one frame": max(len(content), 1), "frames of 7": 7}[kind]
    frames = [zstd(content[i : i + size]) for i in range(0, max(len(content), 1), size)] if size else [content]
    path.write_bytes(b"".join(frames))
    return path


def take_all(lines, stops):
    try:
        return [lines.take(stop) for stop in stops]
    finally:
        lines.close()


@pytest.mark.parametrize("kind", KINDS)
@given(
    content=st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\r\n", b"dddddddddd"]), max_size=30).map(b"".join),
    size=st.integers(1, 9),
    piece=st.integers(1, 12),
)
@settings(max_examples=100, deadline=None)
def test_a_line_is_in_the_part_in_which_it_begins_and_parts_can_be_read_alone(
    tmp_path_factory, kind, content, size, piece
):
    path = write(tmp_path_factory.mktemp("lines"), kind, content)
    starts = [0, *(i + 1 for i, char in enumerate(content) if char == ord("\n") and i + 1 < len(content))]
    bounds = range(0, len(content) + size, size)
    wanted = [
        b"".join(content[a:b] for a, b in pairwise([*starts, len(content)]) if low <= a < high)
        for low, high in pairwise(bounds)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", piece)
        open_stream = KINDS[kind][0]
        assert take_all(Lines(open_stream, path), bounds[1:]) == wanted
        for (low, high), part in zip(pairwise(bounds), wanted, strict=True):
            with lines_from(open_stream, path, low) as lines:
                assert lines.take(high) == part
        for (low, high), part in reversed([*zip(pairwise(bounds), wanted, strict=True)]):
            with lines_from(open_stream, path, low) as lines:
                assert lines.take(high) == part


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_is_counted_and_hashed_as_it_is_stored(tmp_path, kind):
    path = write(tmp_path, kind, b"some words\n" * 3000)
    digest = hashlib.sha256()
    lines = Lines(KINDS[kind][0], path, digest=digest)
    while not lines.is_at_end():
        lines.take(lines.position + 1000)
    assert (lines.num_stored, lines.position) == (path.stat().st_size, 33_000)
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()
    lines.close()


def test_a_byte_order_mark_is_read_as_spaces_at_the_start_alone(tmp_path):
    mark = b"\xef\xbb\xbf"
    path = write(tmp_path, "plain", mark + b"a" + mark + b"\n" + mark + b"b")
    assert take_all(Lines(Plain, path), [1, 100]) == [b"   a" + mark + b"\n", mark + b"b"]


def test_a_line_beyond_all_bounds_is_refused_before_it_is_held(tmp_path, monkeypatch):
    path = write(tmp_path, "one frame", b"a\n" + b"b" * 5_000_000)
    monkeypatch.setattr(lines_module, "MAX_LINE_BYTES", 2_000_000)
    lines = Lines(Zstd, path)
    with pytest.raises(BadFileError, match=r"has a line of more than 2,000,000 bytes \(after byte 1,000\): a JSON obj"):
        lines.take(1000)
    assert lines.position < 4_000_000
    lines.close()


def test_the_next_part_of_a_compressed_file_is_read_on_from_where_the_last_ended(tmp_path):
    path = write(tmp_path, "one frame", b"some words\n" * 1000)
    with lines_from(Zstd, path, 0) as first:
        first.take(1000)
    with lines_from(Zstd, path, 1000) as second:
        assert second.take(1002) == b"some words\n"
    with lines_from(Zstd, path, 2000) as also:
        assert also.take(2010) == b"some words\n"
    with lines_from(Zstd, path, 2009) as third:  # behind
        third.take(2600)
    assert first is second is also
    assert third is not second
    path.write_bytes(zstd(b"other words\n" * 1000))
    with lines_from(Zstd, path, 1200) as fourth:
        assert fourth.take(1201) == b"other words\n"


def test_a_reading_that_failed_is_not_continued(tmp_path):
    path = write(tmp_path, "one frame", b"some words\n" * 1000)
    path.write_bytes(path.read_bytes() + b"garbage")
    for _ in range(2):
        with (
            pytest.raises(BadFileError, match=r"cannot be decompressed after 0 decompressed bytes \(Unknown"),
            lines_from(Zstd, path, 0) as lines,
        ):
            lines.take(10_000_000)


def test_whoever_reads_may_stop_in_the_middle(tmp_path):
    path = write(tmp_path, "one frame", b"some words\n" * 1000)

    def read():
        with lines_from(Zstd, path, 0) as lines:
            for stop in range(100, 1000, 100):
                yield lines, lines.take(stop)

    reading = read()
    first, _ = next(reading)
    reading.close()
    with lines_from(Zstd, path, 500) as second:
        assert second is first
        assert second.position == 506


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b\x08\x00", "is gzip-compressed: decompress it, or compress it with zstd and name it .jsonl.zst"),
        (zstd(b"{}"), "is zstd-compressed: name it .jsonl.zst"),
        (b"PAR1....", "is a parquet file: name it .parquet"),
        (b'\n [\n{"text": "a"}]', "begins with a list: a JSON object on each line is wanted"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_first_bytes(tmp_path, data, reason):
    (tmp_path / "a.jsonl").write_bytes(data)
    lines = Lines(Plain, tmp_path / "a.jsonl")
    with pytest.raises(BadFileError, match=rf"a\.jsonl {reason}"):
        lines.check()
    lines.close()


def test_a_file_that_the_system_does_not_give_is_refused(tmp_path):
    with pytest.raises(BadFileError, match=r"cannot be read \(No such file or directory\): check the path"):
        Lines(Plain, tmp_path / "a.jsonl")
    with pytest.raises(BadFileError, match=r"cannot be read \(Is a directory\): check the path"):
        Lines(Plain, tmp_path)
    lines = Lines(Plain, Path("/proc/self/mem"))  # nothing is mapped at its start
    with pytest.raises(BadFileError, match=r"cannot be read \(Input/output error\): check the path"):
        lines.take(1)
    lines.close()
