"""One planned shard -> its files: the ids, the document offsets, then the receipt that vouches for both.

A shard is a pure function of the plan and its input. Each file is whole or absent, and the receipt comes last: what has
a receipt is done, and what has none is made again.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocess.choose import Engines
from preprocess.growing import GrowingArray
from preprocess.plan import Plan, PlannedShard
from preprocess.receipts import write_receipt
from preprocess.select import Selector
from preprocess.shard import Report, encode_shard
from preprocess.sources import has_footer
from shared.arrays import npy_header
from shared.errors import InputError
from shared.format import (
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    Shard,
    documents_path,
    num_chunks,
    stored_size,
    token_dtype,
    tokens_path,
)
from shared.storage import new_file, write_file
from shared.terminal import safe_text


def write_shard(
    directory: Path, root: Path, plan: Plan, number: int, *, engines: Engines, selector: Selector, report: Report
) -> Shard:
    """Encode shard `number` of `plan` from the inputs under `root`, write its files to `directory`, describe it.

    Raises: InputError if the input cannot be read, or is not what the plan was made from.
    """
    planned, length = plan.shards[number], plan.build.chunk_length
    path = root / plan.sources[planned.source].path
    dtype = TOKEN_DTYPES[token_dtype(plan.tokenizer.vocab_size)]
    with new_file(tokens_path(directory, number)) as file:
        tokens = GrowingArray(file, dtype)
        packed, made_by = encode_shard(tokens, path, planned, plan, engines, selector, report)
        sizes = np.concatenate(packed.sizes)
        check_unchanged(root, plan, planned, len(sizes))
        num_tokens = len(tokens)
        padding = np.full(stored_size(num_tokens, length) - num_tokens, plan.tokenizer.end_of_document_id, dtype)
        tokens.add(padding)
        tokens_sha256 = tokens.finish()
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(OFFSET_DTYPE)
    assert offsets[-1] == num_tokens
    shard = Shard(
        source=planned.source,
        first_row_group=planned.first_row_group,
        num_row_groups=planned.num_row_groups,
        first_row=planned.first_row,
        num_rows=planned.num_rows,
        **packed.counts(),
        num_tokens=num_tokens,
        num_chunks=num_chunks(num_tokens, length),
        num_padding=len(padding),
        tokens_sha256=tokens_sha256,
        documents_sha256=write_file(documents_path(directory, number), npy([offsets], len(offsets), OFFSET_DTYPE)),
    )
    write_receipt(directory, plan, number, shard, made_by)
    return shard


def npy(pieces: Iterable[npt.NDArray], size: int, dtype: np.dtype) -> Iterator[bytes | memoryview]:
    """The contents of a .npy file that holds `pieces` end to end, `size` values in all."""
    yield npy_header(dtype, size)
    for piece in pieces:
        if len(piece):
            yield piece.data.cast("B")


def check_unchanged(root: Path, plan: Plan, planned: PlannedShard, num_rows: int) -> None:
    """Nothing, if the shard's source gave the rows that were planned and has the size that it had then.

    Raises: InputError if not.
    """
    source = plan.sources[planned.source]
    path = root / source.path
    name, remedy = safe_text(str(path)), "run again with a whole file"
    if num_rows != planned.num_rows:
        said = f"its {'footer' if has_footer(path) else 'first reading'} promised {planned.num_rows:,}"
        raise InputError(f"{name} gave {num_rows:,} rows where {said}: it changed or is damaged; {remedy}")
    if (size_bytes := path.stat().st_size) != source.size_bytes:
        raise InputError(
            f"{name} has {size_bytes:,} bytes and had {source.size_bytes:,} when it was planned: it changed; {remedy}"
        )
