"""Before a job waits in a queue: is everything here that a run needs? Ten seconds, one line for each thing."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from shared.claims import owner_in
from shared.directories import exists
from shared.errors import UserError
from shared.files import read_bytes, size_of
from shared.format import Index, read_index, tokens_path
from shared.locks import LOCK_NAME
from shared.storage import sha256_file
from train.checkpoint_directory import newest_step
from train.config import RunConfig
from train.disk import examine_disk
from train.finding import EXIT_CODES, Finding, finding, worst
from train.golden import check_tokenizer
from train.machine import GIB, address_space_limit, examine_machine, file_size_limit
from train.memory import most_kept, saved_bytes
from train.preflight import prepare
from train.request import RunRequest
from train.run_files import CHECKPOINTS_NAME
from train.smoke import Ranks, Smoke

SUMMARY = {
    "ok": "a run can begin",
    "warning": "a run can begin, but look at the warnings",
    "problem": "mend the problems first",
}


@dataclass(frozen=True)
class Patient:
    """What is examined: this machine, and if they are named a dataset and a run of a recipe."""

    config: RunConfig
    num_processes: int
    tokens: Path | None = None
    run: Path | None = None


def examine(patient: Patient) -> Iterator[Finding]:
    """Everything that was found, as soon as it was."""
    ranks = Ranks(patient.num_processes)  # they need the longest
    try:
        yield from examine_machine(patient.num_processes, torch.cuda.device_count())
        yield _devices()
        index = None
        if patient.tokens is not None:
            tokens, sources = patient.tokens, patient.config.data.sources
            examined = [_dataset(directory) for directory in [tokens / source.name for source in sources] or [tokens]]
            yield from (found for _, all_found in examined for found in all_found)
            index = examined[0][0] if all(index for index, _ in examined) else None
        if patient.run is not None:
            yield from _run(patient, index)
        yield from _step(ranks.wait())
    finally:
        ranks.end()


def doctor(patient: Patient, as_json: bool) -> int:
    """Print what `examine` finds; 0 = all is well, 1 = there are warnings, 2 = there are problems."""
    findings = []
    for found in examine(patient):
        findings.append(found)
        if not as_json:
            print(found, flush=True)
    status = worst(findings)
    if as_json:
        print(json.dumps({"status": status, "findings": [asdict(found) for found in findings]}, indent=1))
    else:
        print(SUMMARY[status])
    return EXIT_CODES[status]


def _devices() -> Finding:
    if not torch.cuda.is_available():
        return finding("devices", "no GPU that torch can use, so ranks are on the CPU and meet by gloo")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info(0)
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return finding(
        "devices",
        f"{len(names)} x {names[0]}, {free / GIB:.0f} of {total / GIB:.0f} GiB free, CUDA {torch.version.cuda}, "
        f"NCCL {nccl}",
        warning="another program has memory of it: end that" if free < 0.9 * total else "",
    )


def _dataset(tokens: Path) -> tuple[Index | None, list[Finding]]:
    """The index in `tokens`, if it is whole, and what there is to say of it."""
    try:
        index = read_index(tokens)
        check_tokenizer(tokens, index)
        number = min(range(len(index.shards)), key=lambda shard: index.shards[shard].num_tokens)
        path = tokens_path(tokens, number)
        if sha256_file(path) != index.shards[number].tokens_sha256:
            raise UserError(f"{path} does not match its checksum: `make verify TOKENS={tokens}` tells what else")
    except (OSError, UserError) as error:
        return None, [Finding("dataset", "problem", str(error))]
    size_bytes = sum(size_of(tokens_path(tokens, shard)) for shard in range(len(index.shards)))
    limit = address_space_limit()
    narrow = limit is not None and limit < 2 * size_bytes
    said = f"{index.num_tokens:,} tokens in {len(index.shards):,} shards, fingerprint {index.fingerprint[:12]}"
    return index, [
        finding("dataset", said, problem=f"maps need more than {limit:,} bytes: raise `ulimit -v`" if narrow else "")
    ]


def _run(patient: Patient, index: Index | None) -> list[Finding]:
    """Whether the run could begin or go on, whose it is now, and whether its disk will do."""
    assert patient.run is not None
    found, config = [], patient.config
    if index is not None:
        assert patient.tokens is not None
        try:
            config = prepare(RunRequest(patient.tokens, patient.run, config), patient.num_processes).config
            step = newest_step(patient.run / CHECKPOINTS_NAME)
            found.append(
                finding("run", f"would {f'go on from step {step:,}' if step else 'begin'}, tokenizer and recipe fit")
            )
        except UserError as error:
            found.append(Finding("run", "problem", str(error)))
    lock = patient.run / LOCK_NAME
    if exists(lock) and (owner := owner_in(read_bytes(lock))):
        found.append(finding("run lock", f"names {owner}", warning="it is going on, or was killed: nothing to do then"))
    vocabulary = index.tokenizer.vocab_size if index else config.model.vocab_size or 0
    model = config.model.resolved(vocabulary, 0) if vocabulary else None
    checkpoint = saved_bytes(replace(config, model=model)) if model else 0
    limit = file_size_limit()
    if limit is not None and limit < checkpoint:
        found.append(
            finding("file size", f"at most {limit:,} bytes", problem=f"`ulimit -f` below {checkpoint:,}: raise it")
        )
    return [*found, *examine_disk("run disk", patient.run, checkpoint * most_kept(config))]


def _step(smoke: Smoke | str) -> list[Finding]:
    """The process group and a step, as the ranks have seen them."""
    if isinstance(smoke, str):
        return [finding("one real step", smoke, problem="what the ranks of this machine need together does not work")]
    before, after = smoke.losses
    return [
        finding("process group", f"{smoke.ranks} ranks by {smoke.backend}, {smoke.group_s:.1f} s to meet and add"),
        finding(
            "one real step",
            f"{smoke.step_s:.2f} s on {smoke.ranks} {smoke.device} ranks, loss {before:.3f} -> {after:.3f} on all",
            problem="a step by its own gradient is to lower the loss" if after >= before else "",
        ),
    ]
