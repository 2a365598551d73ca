"""The end of a build: the accounts are checked, the index is written, and one line says what there is now."""

from preprocess.accounting import check_accounts
from preprocess.job import Job
from preprocess.progress import Progress
from preprocess.skip import skip_rest, skipped_sources
from shared.directories import exists
from shared.errors import InputError
from shared.format import FORMAT, INDEX_NAME, VERSION, Index, Shard, read_index, token_dtype, write_index
from shared.terminal import safe_text


def commit(job: Job, shards: dict[int, Shard], progress: Progress, num_new: int) -> Index:
    """Write the index unless it is there already; say what the dataset holds.

    Raises: InputError if there is no document; FormatError if the sums do not add up.
    """
    directory = job.directory
    index = _index(job, skip_rest(directory, job.plan, shards))
    name = safe_text(str(directory))
    if not sum(shard.num_documents for shard in index.shards):
        raise InputError(f"no documents: {_why_none(index)}")
    check_accounts(index)
    if exists(directory / INDEX_NAME) and read_index(directory) == index:
        print(f"{name} is complete: nothing to do" if not num_new else f"{name} is complete again")
    else:
        write_index(directory, index)
    print(summary(read_index(directory), progress))
    return read_index(directory)


def _why_none(index: Index) -> str:
    """Why a dataset has no document, and what to do."""
    if sum(shard.num_other_split for shard in index.shards) and index.selection.split == "validation":
        return "no text was drawn for validation; give a larger --validation-share"
    if sum(shard.num_filtered for shard in index.shards):
        return "every row is null, empty or left out by --where; ask for other rows"
    unreadable = " or in a file that cannot be read" if index.skipped else ""
    return f"every text in the input is null or empty{unreadable}; name an input that holds text"


def _index(job: Job, shards: dict[int, Shard]) -> Index:
    plan, in_order = job.plan, [shards[number] for number in range(len(job.plan.shards))]
    return Index(
        format=FORMAT,
        version=VERSION,
        chunk_length=plan.build.chunk_length,
        dtype=token_dtype(plan.tokenizer.vocab_size),
        text_column=plan.build.text_column,
        shard_bytes=plan.build.shard_bytes,
        tokenizer=plan.tokenizer,
        sources=list(plan.sources),
        shards=in_order,
        selection=plan.build.selection,
        skipped=skipped_sources(job.directory, plan, in_order),
    )


def summary(index: Index, progress: Progress) -> str:
    """What the dataset holds and how fast this run was, in one line."""
    documents, chunks, text_bytes = (
        sum(getattr(shard, name) for shard in index.shards) for name in ("num_documents", "num_chunks", "text_bytes")
    )
    speed = progress.new_bytes / 1e6 / max(progress.elapsed_s, 1e-9)
    ran = f"{speed:.2f} MB/s over {progress.elapsed_s:,.1f} s" if progress.new_bytes else "nothing was encoded"
    counts = {
        "rows filtered out": sum(shard.num_filtered for shard in index.shards),
        "duplicates dropped": sum(shard.num_duplicate for shard in index.shards),
        "input files left out": len(index.skipped),
    }
    left_out = "".join(f"; {count:,} {name}" for name, count in counts.items() if count)
    return (
        f"{documents:,} documents, {index.num_tokens:,} tokens, {chunks:,} chunks of {index.chunk_length:,}, "
        f"{text_bytes / index.num_tokens:.2f} bytes per token; {ran}{left_out}; fingerprint {index.fingerprint[:12]}"
    )
