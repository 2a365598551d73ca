import os
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.footer import BadFileError
from preprocess.frames import check_frames, frame_before, frame_end, read_header
from tests.helpers import zstd

TEXT = b"some words " * 60_000  # several blocks
SKIPPABLE = b"\x5a\x2a\x4d\x18\x05\x00\x00\x00hello"


def streamed(data, **options):
    """A frame that does not say how much is in it."""
    stream = zstandard.ZstdCompressor(**options).compressobj()
    return stream.compress(data) + stream.flush()


def windowed(log):
    return streamed(TEXT, compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=log))


FRAMES = {
    "text": zstd(TEXT),
    "level 19": zstd(TEXT, level=19),
    "checksum": zstd(TEXT, write_checksum=True),
    "no size": streamed(TEXT),
    "window of 128 MiB": windowed(27),
    "window of 1 GiB": windowed(30),
    "nothing": zstd(b""),
    "blocks of one repeated byte": zstd(bytes(1 << 20)),
    "blocks that are stored as they are": zstd(random.Random(0).randbytes(1 << 19)),
    "one byte": zstd(b"a"),
    "skippable": SKIPPABLE,
}


@pytest.fixture
def opened(tmp_path):
    """A function that writes a file and gives its path and descriptor."""
    descriptors = []

    def write(data):
        path = tmp_path / "a.jsonl.zst"
        path.write_bytes(data)
        descriptors.append(os.open(path, os.O_RDONLY))
        return path, descriptors[-1]

    yield write
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_ends_where_the_next_begins(opened, name):
    file = opened(FRAMES[name] + FRAMES["text"] + FRAMES[name])
    size = len(FRAMES[name])
    assert frame_end(*file, 0, read_header(*file, 0)) == size
    check_frames(*file)


@given(
    contents=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5),
    sized=st.booleans(),
    position=st.integers(0, 200),
)
@settings(max_examples=100, deadline=None)
def test_the_frame_before_a_position_is_the_last_that_can_be_known(tmp_path_factory, contents, sized, position):
    frames = [zstd(content) if sized else streamed(content) for content in contents]
    path = tmp_path_factory.mktemp("frames") / "a.zst"
    path.write_bytes(b"".join(frames))
    descriptor = os.open(path, os.O_RDONLY)
    offset, begins = frame_before(path, descriptor, position)
    os.close(descriptor)
    number = [sum(map(len, frames[:i])) for i in range(len(frames) + 1)].index(offset)
    assert begins == sum(map(len, contents[:number]))
    assert begins <= position or not sized
    assert number == 0 or sized
    assert not sized or number == len(frames) or begins + len(contents[number]) > position


@pytest.mark.parametrize("name", FRAMES)
def test_a_file_that_is_cut_anywhere_in_a_frame_is_found_out(opened, name):
    first, second = zstd(b"first"), FRAMES[name]
    cuts = {1, 2, 3, 4, 5, 6, 9, len(second) // 2, len(second) - 4, len(second) - 1} & set(range(1, len(second)))
    for cut in cuts:
        with pytest.raises(BadFileError) as caught:
            check_frames(*opened(first + second[:cut]))
        assert caught.value.reason == (
            f"is cut short or damaged (the zstd frame that begins at byte {len(first):,} does not end)"
        )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"is empty \(0 bytes\): a zstd file is wanted; download it again or move it away"),
        (
            b'{"text": "a"}',
            r"is not a zstd file \(begins with b'{\"te', not b'.*'\): if it is not compressed, take .zst",
        ),
        (
            zstd(b"a") + b"more",
            r"has something else than a zstd frame at byte 10: the file is damaged; download it again",
        ),
        (zstd(b"a") + bytes(100), "has something else than a zstd frame at byte 10"),
    ],
)
def test_what_is_no_frame_is_refused(opened, data, reason):
    with pytest.raises(BadFileError, match=reason):
        check_frames(*opened(data))
