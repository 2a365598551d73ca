"""One planned shard -> its files: the ids, the document offsets, then the receipt that vouches for both.

A shard is a pure function of the plan and its input. Each file is whole or absent, and the receipt comes last: what has
a receipt is done, and what has none is made again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.check import ShardCheck
from preprocess.choose import Engines
from preprocess.encode import EngineError, Ids, Lengths, ReferenceEngine
from preprocess.plan import Plan, PlannedShard
from preprocess.sources import has_footer, read_texts
from shared.arrays import check_array, npy_header
from shared.config import structure
from shared.errors import ConfigError, FormatError, InputError
from shared.format import (
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    Shard,
    documents_path,
    num_chunks,
    receipt_path,
    stored_size,
    token_dtype,
    tokens_path,
)
from shared.storage import read_sealed, write_file, write_sealed
from shared.terminal import safe_text

Tokens = npt.NDArray[np.unsignedinteger]
Report = Callable[[int, int], None]  # bytes of text and tokens since the last call


@dataclass
class Packed:
    """What the batches of a shard have become so far.

    The ids of the whole shard are held, in the type they are stored in: the .npy header needs their number first, and
    256 MiB of text is about as many bytes of ids. Text is never held beyond one batch.
    """

    pieces: list[Tokens]
    sizes: list[Lengths]
    num_null: int = 0
    num_empty: int = 0
    text_bytes: int = 0


def write_shard(directory: Path, root: Path, plan: Plan, number: int, *, engines: Engines, report: Report) -> Shard:
    """Encode shard `number` of `plan` from the inputs under `root`, write its files to `directory`, describe it.

    Raises: InputError if the input cannot be read, or is not what the plan was made from.
    """
    planned = plan.shards[number]
    packed, made_by = _encode_checked(root / plan.sources[planned.source].path, planned, plan, engines, report)
    sizes = np.concatenate([*packed.sizes, np.zeros(0, np.int64)])
    _check_unchanged(root, plan, planned, len(sizes))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(OFFSET_DTYPE)
    num_tokens, length = int(offsets[-1]), plan.build.chunk_length
    dtype, stored = TOKEN_DTYPES[token_dtype(plan.tokenizer.vocab_size)], stored_size(num_tokens, length)
    padding = np.full(stored - num_tokens, plan.tokenizer.end_of_document_id, dtype)
    shard = Shard(
        source=planned.source,
        first_row_group=planned.first_row_group,
        num_row_groups=planned.num_row_groups,
        first_row=planned.first_row,
        num_rows=planned.num_rows,
        num_documents=planned.num_rows - packed.num_null - packed.num_empty,
        num_null=packed.num_null,
        num_empty=packed.num_empty,
        text_bytes=packed.text_bytes,
        num_tokens=num_tokens,
        num_chunks=num_chunks(num_tokens, length),
        num_padding=len(padding),
        tokens_sha256=write_file(tokens_path(directory, number), npy([*packed.pieces, padding], dtype)),
        documents_sha256=write_file(documents_path(directory, number), npy([offsets], OFFSET_DTYPE)),
    )
    write_sealed(receipt_path(directory, number), _receipt(plan, number, shard, made_by))
    return shard


def complete_shard(directory: Path, plan: Plan, number: int, *, compared: bool = False) -> Shard | None:
    """The shard `number` as its receipt describes it, or None if it must be written: no receipt, or another plan's.

    With `compared`, one that no second engine has encoded must be written too.

    Raises: FormatError if the receipt or one of the shard's files is damaged.
    """
    path, planned = receipt_path(directory, number), plan.shards[number]
    if not path.exists():
        return None
    receipt = read_sealed(path)
    known = {field.name: receipt[field.name] for field in fields(Shard) if field.name in receipt}
    try:
        shard = structure(known, Shard, str(path))
    except ConfigError as error:
        raise FormatError(f"{error}: not a receipt of this release") from None
    place = (shard.source, shard.first_row_group, shard.num_row_groups, shard.first_row, shard.num_rows)
    if receipt.get("plan") != plan.identity or place != _place(planned):
        return None
    if compared and receipt.get("compared_with") is None and receipt.get("engine") not in (None, ReferenceEngine.name):
        return None
    dtype = TOKEN_DTYPES[token_dtype(plan.tokenizer.vocab_size)]
    check_array(tokens_path(directory, number), dtype, stored_size(shard.num_tokens, plan.build.chunk_length))
    check_array(documents_path(directory, number), OFFSET_DTYPE, shard.num_rows + 1)
    return shard


def pack(ids: Ids, lengths: Lengths, end_of_document_id: int, dtype: np.dtype) -> tuple[Tokens, Lengths]:
    """`ids` in `dtype` with the end-of-document id after every text that has any, and the size of each text so packed.

    >>> pack(np.array([7, 8, 9]), np.array([2, 0, 1]), 0, np.dtype("<u2"))
    (array([7, 8, 0, 9, 0], dtype=uint16), array([3, 0, 2]))
    """
    sizes = lengths + (lengths > 0)
    is_id = np.ones(int(sizes.sum()), np.bool_)
    is_id[np.cumsum(sizes)[lengths > 0] - 1] = False
    out = np.full(len(is_id), end_of_document_id, dtype)
    out[is_id] = ids
    return out, sizes


def npy(pieces: Sequence[npt.NDArray], dtype: np.dtype) -> Iterator[bytes | memoryview]:
    """The contents of a .npy file that holds `pieces` end to end."""
    yield npy_header(dtype, sum(map(len, pieces)))
    for piece in pieces:
        if len(piece):
            yield piece.data.cast("B")


def _encode_checked(
    path: Path, planned: PlannedShard, plan: Plan, engines: Engines, report: Report
) -> tuple[Packed, dict[str, Any]]:
    """The shard as the first engine gives it that passes the checks, and what its receipt says of that."""
    failovers: list[dict[str, str]] = []
    for check in engines.checks(planned.first_row, planned.num_rows):
        packed = Packed([], [])
        try:
            _encode(path, planned, plan, check, packed, report)
            check.finish()
        except EngineError as error:
            if check.is_reference:
                raise InputError(
                    f"shard {planned.number} gave {error}: the tokenizer contradicts itself, use another tokenizer.json"
                ) from None
            report(-packed.text_bytes, -sum(map(len, packed.pieces)))
            label = check.candidate.label
            failovers.append({"engine": label, "reason": str(error)})
            print(f"shard {planned.number} is encoded again with the next engine: {label}: {error}", flush=True)
        else:
            return packed, {**check.receipt(), "failovers": failovers}
    raise AssertionError("the last engine is the reference, which has no other to differ from")


def _check_unchanged(root: Path, plan: Plan, planned: PlannedShard, num_rows: int) -> None:
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


def _encode(path: Path, planned: PlannedShard, plan: Plan, check: ShardCheck, packed: Packed, report: Report) -> None:
    """Add the shard's texts to `packed`, encoded."""
    tokenizer = plan.tokenizer
    dtype = TOKEN_DTYPES[token_dtype(tokenizer.vocab_size)]
    row_groups = range(planned.first_row_group, planned.first_row_group + planned.num_row_groups)
    for texts in read_texts(path, row_groups, plan.build.text_column):
        ids, lengths = check.encode(texts.fill_null("") if texts.null_count else texts)
        text_bytes = _text_bytes(texts)
        check.check_ids(ids, tokenizer.vocab_size, text_bytes)
        tokens, sizes = pack(ids, lengths, tokenizer.end_of_document_id, dtype)
        packed.pieces.append(tokens)
        packed.sizes.append(sizes)
        packed.num_null += texts.null_count
        packed.num_empty += int((lengths == 0).sum()) - texts.null_count
        packed.text_bytes += text_bytes
        report(text_bytes, len(tokens))


def _text_bytes(texts: Any) -> int:
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    return int(offsets[texts.offset + len(texts)] - offsets[texts.offset])


def _receipt(plan: Plan, number: int, shard: Shard, made_by: dict[str, Any]) -> dict[str, Any]:
    return {"shard": number, **asdict(shard), "plan": plan.identity, "settings": plan.settings, **made_by}


def _place(planned: PlannedShard) -> tuple[int, int, int, int, int]:
    rows = (planned.first_row, planned.num_rows)
    return (planned.source, planned.first_row_group, planned.num_row_groups, *rows)


def receipt_settings(path: Path) -> dict[str, Any]:
    """The settings of the build that wrote the receipt at `path`.

    Raises: FormatError if it is damaged.
    """
    settings = read_sealed(path).get("settings")
    if not isinstance(settings, dict):
        raise FormatError(f"{path} is not a receipt of this release: name another directory")
    return settings
