"""Text with the loss of each of its tokens, in colours on a terminal."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from shared.terminal import safe_text

COLOURS = ((1.0, "green"), (2.5, "cyan"), (5.0, ""), (8.0, "yellow"), (float("inf"), "red"))
"""Of a token, by the loss that it is below."""
Decode = Callable[[list[int]], str]
Paint = Callable[[str, float | None], str]
Piece = tuple[str, float | None]


def mean_loss(losses: Sequence[float | None]) -> float | None:
    """Over the targets; None if there are none."""
    targets = [loss for loss in losses if loss is not None]
    return fmean(targets) if targets else None


def pieces(ids: Sequence[int], losses: Sequence[float | None], decode: Decode) -> Iterator[Piece]:
    """Text of one token with its loss, or of as few as give whole characters, with the mean of theirs."""
    first = 0
    for end in range(1, len(ids) + 1):
        text = decode(list(ids[first:end]))
        if end == len(ids) or not text.endswith("\ufffd"):
            yield text, mean_loss(losses[first:end])
            first = end


def lines_of(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    r"""The pieces line by line: a newline is spelled out, and what follows it is on another line.

    >>> list(lines_of([("a\nb", 1.0), ("c", 2.0)]))
    [[('a\\n', 1.0)], [('b', 1.0), ('c', 2.0)]]
    """
    line: list[Piece] = []
    for text, loss in pieces:
        *ended, rest = text.split("\n")
        for part in ended:
            yield [*line, (f"{part}\\n", loss)]
            line = []
        line = [*line, (rest, loss)]
    yield line


def painter() -> Paint:
    """What colours text by its loss, if this is a terminal and NO_COLOR is not set; what it gives is safe to show."""
    console = Console()
    if console.no_color or console.color_system is None:
        return lambda text, _loss: safe_text(text)
    styles = [(bound, Style.parse(colour)) for bound, colour in COLOURS]

    def paint(text: str, loss: float | None) -> str:
        style = Style() if loss is None else next(style for bound, style in styles if loss < bound)
        return style.render(safe_text(text), color_system=ColorSystem.STANDARD)

    return paint
