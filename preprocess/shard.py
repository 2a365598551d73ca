"""The rows of one planned shard -> its ids, packed: read, selected, encoded, checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.batches import Rows, text_sizes
from preprocess.check import ShardCheck
from preprocess.choose import Engines
from preprocess.encode import EngineError, Ids, Lengths
from preprocess.growing import GrowingArray
from preprocess.plan import Plan, PlannedShard
from preprocess.select import Fate, Fates, Selector, columns_read, kept_texts
from preprocess.sources import read_rows
from preprocess.token_counts import other_count
from shared.errors import InputError
from shared.format import TOKEN_DTYPES, token_dtype
from shared.terminal import safe_text

Tokens = npt.NDArray[np.unsignedinteger]
Report = Callable[[int, int], None]  # bytes of text and tokens since the last call


class Packed:
    """What the batches of a shard have become so far.

    Text and ids are never held beyond one batch: the ids are in `tokens`, which is emptied for them.
    """

    def __init__(self, tokens: GrowingArray) -> None:
        tokens.clear()
        self.tokens = tokens
        self.sizes: list[Lengths] = [np.zeros(0, np.int64)]
        self.fates: list[Fates] = [np.zeros(0, np.uint8)]
        self.read_bytes = self.text_bytes = self.rejected_bytes = 0

    def counts(self) -> dict[str, int]:
        """The rows by their fate and the bytes of text, as a receipt names them."""
        rows = np.bincount(np.concatenate(self.fates), minlength=len(Fate)).tolist()
        return {
            "num_documents": rows[Fate.DOCUMENT],
            "num_null": rows[Fate.NULL],
            "num_empty": rows[Fate.EMPTY],
            "num_filtered": rows[Fate.FILTERED],
            "num_duplicate": rows[Fate.DUPLICATE],
            "num_other_split": rows[Fate.OTHER_SPLIT],
            "read_bytes": self.read_bytes,
            "text_bytes": self.text_bytes,
            "rejected_bytes": self.rejected_bytes,
        }

    def add(self, fates: Fates, sizes: Lengths, kept_bytes: int, tokens: Tokens, stored: Lengths) -> None:
        """Add a batch: the fate and bytes of each row, the bytes that were kept, and what is stored for them."""
        self.tokens.add(tokens)
        self.sizes.append(stored)
        self.fates.append(fates)
        self.read_bytes += int(sizes.sum())
        self.text_bytes += kept_bytes
        self.rejected_bytes += int(sizes[fates >= Fate.FILTERED].sum())


def encode_shard(
    tokens: GrowingArray,
    path: Path,
    planned: PlannedShard,
    plan: Plan,
    engines: Engines,
    selector: Selector,
    report: Report,
) -> tuple[Packed, dict[str, Any]]:
    """The shard as the first engine gives it that passes the checks, and what its receipt says of that.

    Its ids are in `tokens`.

    Raises: InputError if the input cannot be read or its token counts are not those of the tokenizer.
    """
    failovers: list[dict[str, str]] = []
    for check in engines.checks(planned.first_row, planned.num_rows):
        packed = Packed(tokens)
        try:
            _encode(path, planned, plan, check, selector, engines.settings.token_counts, packed, report)
            check.finish()
        except EngineError as error:
            if check.is_reference:
                raise InputError(
                    f"shard {planned.number} gave {error}: the tokenizer contradicts itself, use another tokenizer.json"
                ) from None
            report(-packed.read_bytes, -len(packed.tokens))
            label = check.candidate.label
            failovers.append({"engine": label, "reason": str(error)})
            print(f"shard {planned.number} is encoded again with the next engine: {label}: {error}", flush=True)
        else:
            return packed, {
                **check.receipt(),
                "failovers": failovers,
                "token_counts": engines.settings.token_counts,
            }
    raise AssertionError("the last engine is the reference, which has no other to differ from")


def _encode(
    path: Path,
    planned: PlannedShard,
    plan: Plan,
    check: ShardCheck,
    selector: Selector,
    token_counts: str | None,
    packed: Packed,
    report: Report,
) -> None:
    """Add the shard's rows to `packed`, encoded."""
    tokenizer, row = plan.tokenizer, planned.first_row
    dtype = TOKEN_DTYPES[token_dtype(tokenizer.vocab_size)]
    row_groups = range(planned.first_row_group, planned.first_row_group + planned.num_row_groups)
    others = columns_read(plan.build.selection, token_counts)
    for rows in read_rows(path, row_groups, plan.build.text_column, others):
        fates = selector.fates(rows, row)
        texts, sizes = kept_texts(rows.texts, fates), text_sizes(rows.texts)
        kept_bytes = int(text_sizes(texts).sum())
        ids, lengths = check.encode(texts)
        check.check_ids(ids, tokenizer.vocab_size, kept_bytes)
        if token_counts:
            _check_counts(path, row, rows, token_counts, fates, lengths, check)
        fates[(fates == Fate.DOCUMENT) & (lengths == 0)] = Fate.EMPTY  # a tokenizer may make nothing of a text
        tokens, stored = pack(ids, lengths, tokenizer.end_of_document_id, dtype)
        packed.add(fates, sizes, kept_bytes, tokens, stored)
        report(int(sizes.sum()), len(tokens))
        row += len(fates)


def _check_counts(
    path: Path, first_row: int, rows: Rows, column: str, fates: Fates, lengths: Lengths, check: ShardCheck
) -> None:
    """Nothing, if every document has as many ids as the column says; the engine is doubted before the input.

    Raises: EngineError if a count differs, from the reference engine InputError.
    """
    different = other_count(rows.others.column(column), lengths, fates == Fate.DOCUMENT)
    if different is None:
        return
    number, found = different
    told = f"row {first_row + number:,} has {column} {found} and {lengths[number]:,} ids"
    if not check.is_reference:
        raise EngineError(f"another number of ids than is known: {safe_text(told)}")
    raise InputError(f"{safe_text(f'{path}: {told}')}: give the tokenizer that counted, or leave --token-counts out")


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
