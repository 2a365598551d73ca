"""The frames of a zstd file: where each begins and ends, found without decompressing anything.

A frame is a header, blocks that each say how long they are, and perhaps a checksum. Its header may say how much comes
out of it. A decompressor that is fed piece by piece does not tell a file that ends inside a frame from a whole one, so
this is looked at here. Source: RFC 8878, section 3.1.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import zstandard

from preprocess.footer import DAMAGED, BadFileError

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = 0x184D2A5  # and 4 bits that are free; such a frame holds nothing that comes out
SKIPPABLE_HEADER_BYTES = 8
MAX_HEADER_BYTES, BLOCK_HEADER_BYTES, CHECKSUM_BYTES = 18, 3, 4
RLE = 1  # a block of one byte that is repeated


@dataclass(frozen=True)
class Header:
    """The beginning of a frame: `content_bytes` come out of it (None: it does not say); `size` is its own length."""

    size: int
    content_bytes: int | None
    has_checksum: bool
    has_blocks: bool = True


def check_frames(path: Path, descriptor: int) -> None:
    """Nothing, if the file is whole frames end to end, at least one.

    Raises: BadFileError saying which frame is cut short, or where something else stands.
    """
    size_bytes, offset = os.fstat(descriptor).st_size, 0
    if not size_bytes:
        raise BadFileError(path, "is empty (0 bytes)", "a zstd file is wanted; download it again or move it away")
    while offset < size_bytes:
        offset = frame_end(path, descriptor, offset, read_header(path, descriptor, offset))


def frame_before(path: Path, descriptor: int, position: int) -> tuple[int, int]:
    """The last frame known to begin at or before `position` in what comes out: where in the file, and where in that."""
    offset = begins = 0
    while offset < os.fstat(descriptor).st_size:
        header = read_header(path, descriptor, offset)
        if header.content_bytes is None or begins + header.content_bytes > position:
            break
        offset, begins = frame_end(path, descriptor, offset, header), begins + header.content_bytes
    return offset, begins


def read_header(path: Path, descriptor: int, offset: int) -> Header:
    """The header of the frame at `offset`.

    Raises: BadFileError if no frame begins there.
    """
    head = os.pread(descriptor, MAX_HEADER_BYTES, offset)
    if int.from_bytes(head[:4], "little") >> 4 == SKIPPABLE_MAGIC:
        size = int.from_bytes(head[4:8], "little")
        return Header(SKIPPABLE_HEADER_BYTES + size, 0, has_checksum=False, has_blocks=False)
    if not head.startswith(MAGIC) and (len(head) >= len(MAGIC) or not offset):
        if offset:
            raise BadFileError(path, f"has something else than a zstd frame at byte {offset:,}", DAMAGED)
        remedy = "if it is not compressed, take .zst from its name; else download it again or move it away"
        raise BadFileError(path, f"is not a zstd file (begins with {head[:4]!r}, not {MAGIC!r})", remedy)
    try:
        known = zstandard.get_frame_parameters(head)
        size = zstandard.frame_header_size(head)
    except zstandard.ZstdError:
        raise _cut(path, offset) from None
    content_bytes = None if known.content_size == zstandard.CONTENTSIZE_UNKNOWN else known.content_size
    return Header(size, content_bytes, known.has_checksum)


def frame_end(path: Path, descriptor: int, start: int, header: Header) -> int:
    """Where the frame at `start` ends.

    Raises: BadFileError if that is behind the end of the file.
    """
    offset, is_last = start + header.size, not header.has_blocks
    while not is_last:
        head = os.pread(descriptor, BLOCK_HEADER_BYTES, offset)
        if len(head) < BLOCK_HEADER_BYTES:
            raise _cut(path, start)
        block = int.from_bytes(head, "little")
        is_last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        offset += BLOCK_HEADER_BYTES + (1 if kind == RLE else size)
    offset += CHECKSUM_BYTES * header.has_checksum
    if offset > os.fstat(descriptor).st_size:
        raise _cut(path, start)
    return offset


def _cut(path: Path, start: int) -> BadFileError:
    reason = f"is cut short or damaged (the zstd frame that begins at byte {start:,} does not end)"
    return BadFileError(path, reason, "download it again or move it away")
