"""Input files left out whole: `--on-bad-file skip`.

A file whose footer cannot be read (of JSON lines: found) has no place in the plan. One that turns out damaged while it
is read keeps its place, and all of its shards are written without a document: so no other shard is renumbered or
written again, and it does not matter which worker found the damage, in which shard, or when. The reason is the first
damage from the start of the file, whatever was found first. The receipts of such shards are the durable record of the
decision.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from preprocess.plan import Plan
from preprocess.receipts import write_receipt
from preprocess.sources import BadFileError, Footer, natural_key, read_footer, read_rows, try_footers
from preprocess.writer import npy
from shared.errors import FormatError
from shared.format import (
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    Shard,
    SkippedSource,
    documents_path,
    receipt_path,
    token_dtype,
    tokens_path,
)
from shared.storage import read_sealed, write_file


def read_footers(
    files: Sequence[Path], root: Path, column: str, others: Sequence[str] = (), *, skip_bad: bool
) -> tuple[list[Footer], list[SkippedSource]]:
    """The footers of `files` in order, and the files left out because theirs cannot be read, if they may be.

    Raises: BadFileError for the first file that cannot be read, unless such files may be skipped.
    """
    footers, skipped = [], []
    with closing(try_footers(files, root, column, others)) as found:
        for file, footer in zip(files, found, strict=True):
            if isinstance(footer, Footer):
                footers.append(footer)
            elif skip_bad:
                size_bytes = file.stat().st_size
                skipped.append(SkippedSource(file.relative_to(root).as_posix(), size_bytes, footer.reason))
            else:
                raise footer
    return footers, skipped


def first_problem(path: Path, column: str, others: Sequence[str]) -> str | None:
    """Why the file at `path` cannot be read, as found by reading it from the start; None if it can be read."""
    try:
        num_row_groups = len(read_footer(path, path.parent, column, others).row_groups)
        for _ in read_rows(path, range(num_row_groups), column, others):
            pass
    except BadFileError as error:
        return error.reason
    return None


def write_skipped(directory: Path, plan: Plan, number: int, reason: str) -> Shard:
    """Write shard `number` of `plan` without a document, because its source is left out for `reason`; describe it."""
    planned = plan.shards[number]
    dtype = TOKEN_DTYPES[token_dtype(plan.tokenizer.vocab_size)]
    padding = np.full(1, plan.tokenizer.end_of_document_id, dtype)
    offsets = np.zeros(planned.num_rows + 1, OFFSET_DTYPE)
    shard = Shard(
        source=planned.source,
        first_row_group=planned.first_row_group,
        num_row_groups=planned.num_row_groups,
        first_row=planned.first_row,
        num_rows=planned.num_rows,
        num_documents=0,
        num_null=0,
        num_empty=0,
        text_bytes=0,
        num_tokens=0,
        num_chunks=0,
        num_padding=len(padding),
        tokens_sha256=write_file(tokens_path(directory, number), npy([padding], len(padding), dtype)),
        documents_sha256=write_file(documents_path(directory, number), npy([offsets], len(offsets), OFFSET_DTYPE)),
        num_skipped=planned.num_rows,
    )
    write_receipt(directory, plan, number, shard, {"reason": reason})
    return shard


def skip_rest(directory: Path, plan: Plan, shards: Mapping[int, Shard]) -> dict[int, Shard]:
    """`shards` with all shards of every source of which one was skipped written without a document."""
    reasons = _reasons(directory, shards)
    return {
        number: write_skipped(directory, plan, number, reasons[shard.source])
        if shard.source in reasons and not shard.num_skipped
        else shard
        for number, shard in sorted(shards.items())
    }


def skipped_sources(directory: Path, plan: Plan, shards: Sequence[Shard]) -> list[SkippedSource]:
    """Every input file that was left out, in the order of the inputs, with the reason."""
    reasons = _reasons(directory, dict(enumerate(shards)))
    damaged = [
        SkippedSource(plan.sources[source].path, plan.sources[source].size_bytes, reason)
        for source, reason in reasons.items()
    ]
    return sorted([*plan.skipped, *damaged], key=lambda source: natural_key(source.path))


def _reasons(directory: Path, shards: Mapping[int, Shard]) -> dict[int, str]:
    """Why each source with a skipped shard was left out."""
    reasons = {}
    for number, shard in shards.items():
        if shard.num_skipped and shard.source not in reasons:
            path = receipt_path(directory, number)
            reason = read_sealed(path).get("reason")
            if not isinstance(reason, str):
                raise FormatError(f"{path} does not say why its input was left out: delete it and run again")
            reasons[shard.source] = reason
    return reasons
