"""Receipts: what vouches for a finished shard, and whether it still does."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from preprocess.config import EngineSettings
from preprocess.encode import ReferenceEngine
from preprocess.plan import Plan, PlannedShard
from shared.arrays import check_array
from shared.config import structure
from shared.directories import exists
from shared.errors import ConfigError, FormatError
from shared.format import (
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    Shard,
    documents_path,
    receipt_path,
    stored_size,
    token_dtype,
    tokens_path,
)
from shared.storage import read_sealed, write_sealed


def write_receipt(directory: Path, plan: Plan, number: int, shard: Shard, made_by: dict[str, Any]) -> None:
    """Vouch for shard `number` of `plan`, whose arrays are written; `made_by` says how."""
    facts = {"plan": plan.identity, "settings": plan.settings, **made_by}
    write_sealed(receipt_path(directory, number), {"shard": number, **asdict(shard), **facts})


def complete_shard(directory: Path, plan: Plan, number: int, asked: EngineSettings) -> Shard | None:
    """The shard `number` as its receipt describes it, or None if it must be written: no receipt, or another plan's.

    One that was not checked as `asked` must be written too: encoded by a second engine, its tokens counted.

    Raises: FormatError if the receipt or one of the shard's files is damaged.
    """
    path, planned = receipt_path(directory, number), plan.shards[number]
    if not exists(path):
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
    if not shard.num_skipped and not _is_checked(receipt, asked):
        return None
    dtype = TOKEN_DTYPES[token_dtype(plan.tokenizer.vocab_size)]
    check_array(tokens_path(directory, number), dtype, stored_size(shard.num_tokens, plan.build.chunk_length))
    check_array(documents_path(directory, number), OFFSET_DTYPE, shard.num_rows + 1)
    return shard


def _is_checked(receipt: dict[str, Any], asked: EngineSettings) -> bool:
    compared = receipt.get("compared_with") is not None or receipt.get("engine") == ReferenceEngine.name
    counted = asked.token_counts is None or receipt.get("token_counts") == asked.token_counts
    return counted and (compared or not asked.verifies_all)


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
