"""Whether everything that went in came out: a build whose sums do not add up fails."""

from collections.abc import Iterator

from shared.errors import FormatError
from shared.format import Index
from shared.terminal import safe_text

FATES = ("documents", "null", "empty", "filtered", "duplicate", "other_split", "skipped")


def check_accounts(index: Index) -> None:
    """Nothing, if every row and every byte of the inputs is accounted for.

    Raises: FormatError naming the first input or shard whose sums do not add up.
    """
    for problem in problems(index):
        raise FormatError(
            f"the sums do not add up: {safe_text(problem)}: delete the shards of that input and run again; "
            "if it happens again, report it"
        )


def problems(index: Index) -> Iterator[str]:
    """One phrase for each sum that does not add up."""
    for number, shard in enumerate(index.shards):
        fates = {name: getattr(shard, f"num_{name}") for name in FATES}
        if sum(fates.values()) != shard.num_rows:
            found = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in fates.items())
            yield f"shard {number} has {shard.num_rows:,} rows, but {found} make {sum(fates.values()):,}"
        if shard.read_bytes != shard.text_bytes + shard.rejected_bytes:
            behind = f"{shard.text_bytes:,} behind its tokens and {shard.rejected_bytes:,} rejected"
            yield f"shard {number} read {shard.read_bytes:,} bytes of text, but {behind}"
        # A document is at least a byte of text, and at least a token and its end.
        if shard.num_tokens < 2 * shard.num_documents or shard.text_bytes < shard.num_documents:
            behind = f"{shard.num_tokens:,} tokens and {shard.text_bytes:,} bytes of text"
            yield f"shard {number} has {behind} behind {shard.num_documents:,} documents"
        if shard.num_tokens and not shard.num_documents:
            yield f"shard {number} has {shard.num_tokens:,} tokens of no document"
    yield from _source_problems(index)


def _source_problems(index: Index) -> Iterator[str]:
    rows, next_row = [0] * len(index.sources), [0] * len(index.sources)
    for number, shard in enumerate(index.shards):
        if shard.first_row != next_row[shard.source]:
            yield f"shard {number} begins at row {shard.first_row:,}, not at {next_row[shard.source]:,}"
        rows[shard.source] += shard.num_rows
        next_row[shard.source] = shard.first_row + shard.num_rows
    for source, found in zip(index.sources, rows, strict=True):
        if found != source.num_rows:
            yield f"{source.path} has {source.num_rows:,} rows, its shards {found:,}"
