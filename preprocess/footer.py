"""What is known of an input file before its text is read, and the error that says why one cannot be read."""

from dataclasses import dataclass
from pathlib import Path

from shared.errors import InputError
from shared.terminal import safe_text

DAMAGED = "the file is damaged; download it again or move it away"


class BadFileError(InputError):
    """An input file that cannot be read; `reason` says why without naming the directory it was found in."""

    def __init__(self, path: Path, reason: str, remedy: str, link: str = " ") -> None:
        super().__init__(f"{safe_text(str(path))}{link}{reason}: {remedy}")
        self.reason = reason


def unreadable(path: Path, error: OSError) -> BadFileError:
    """The error for a file that the system does not give."""
    return BadFileError(path, f"cannot be read ({error.strerror})", "check the path and its permissions")


@dataclass(frozen=True)
class RowGroup:
    """A part of a file that can be read alone; `text_bytes` is about the size of its text before compression."""

    num_rows: int
    text_bytes: int


@dataclass(frozen=True)
class Footer:
    """What a file holds; `path` is relative to the input.

    A parquet file says it in its footer, of which `identity` is the sha256; JSON lines are read for it once, and their
    `identity` is that of the whole file.
    """

    path: str
    size_bytes: int
    num_rows: int
    identity: str
    row_groups: tuple[RowGroup, ...]

    @property
    def text_bytes(self) -> int:
        """Size of the text before compression, nearly."""
        return sum(group.text_bytes for group in self.row_groups)
