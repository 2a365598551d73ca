"""What `trace` has found as lines for people; all that is of documents or files is made safe to show."""

import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from shared.terminal import counted, safe_text
from train.loss_colours import lines_of, painter

MOST_TO_COME = 20
UNKNOWN = "not told by the start of that step"


def step_lines(step: dict[str, Any]) -> Iterator[str]:
    """A step with its chunks in the order in which they were read, and the documents of each."""
    if step["state"] == "to come":
        outcome = "has not happened: this is what it will read if nothing changes"
    elif step["learned"] is False:
        outcome = "skipped, as its loss or gradient was not finite"
    elif step["loss"] is None:
        outcome = "there is no record of it"
    else:
        outcome = f"loss {step['loss']:.4f}"
    sizes = f"{len(step['chunks']):,} chunks of {step['sequence_length']:,} tokens"
    if "checkpoint" in step:
        model = f"the model of step {step['checkpoint']['step']:,} ({step['checkpoint']['path']})"
        outcome += f" ({step['checkpoint_loss']:.4f} by {safe_text(model)})"
    yield f"step {step['step']:,} of {safe_text(step['run'])}: {outcome}; {sizes}, {safe_text(step['layout'])}"
    yield from _stage_before(step["beginning"], "what was read before that")
    for chunk in step["chunks"]:
        place = f"epoch {chunk['epoch']}, chunk {chunk['offset']:,} of shard {chunk['shard']}"
        yield f"position {chunk['position']:,} ({place}): {_who(chunk)}"
        for part in chunk["documents"]:
            name = safe_text(f"{part['source']}:{part['row']}")
            loss = f"  loss {part['loss']:.4f}" if part.get("loss") is not None else ""
            yield f"  {name}  {_extent(part, part['num_tokens'])}{loss}{_columns(part)}"
            yield from _text(part)
    yield ""


def document_lines(document: dict[str, Any]) -> Iterator[str]:
    """A document, the steps that have seen it and will, and whether it is validated on."""
    name = safe_text(f"{document['source']}:{document['row']}")
    yield f"document {name}  {document['num_tokens']:,} tokens{_columns(document)}"
    yield from _text(document)
    yield from _summary(document)
    yield from _stage_before(document["beginning"], "whether it was seen before that")
    coming = 0
    for seen in document["sightings"]:
        coming += seen["state"] == "to come"
        if coming > MOST_TO_COME:
            continue
        extents = " and ".join(_extent(part, document["num_tokens"]) for part in seen["parts"])
        fate = {"undone": " (undone by a rollback)", "to come": " (to come)"}.get(seen["state"], "")
        fate = fate or (" (skipped: its loss or gradient was not finite)" if seen["learned"] is False else "")
        yield f"  step {seen['step']:,}{fate}  epoch {seen['epoch']}  {extents}  {_who(seen)}"
    if coming > MOST_TO_COME:
        yield f"  ... {coming - MOST_TO_COME:,} more to come (all of them with --json)"
    yield ""


def problem_lines(told: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Why the inputs say nothing of some documents, each reason once."""
    documents = [part for found in told for chunk in found.get("chunks", ()) for part in chunk["documents"]]
    files: dict[str, dict[str, str]] = defaultdict(dict)
    for document in (*documents, *told):
        if problem := document.get("problem"):
            reason = problem.removeprefix(safe_text(document["source"]))
            files[reason][document["source"]] = problem
    for named in files.values():
        first, others = safe_text(next(iter(named.values()))), len(named) - 1
        also = f", nor are those of {counted(others, 'other file')} for the same reason" if others else ""
        yield f"note: {first}, so its ids, urls and dates are not told{also}\n"


def _stage_before(beginning: dict[str, Any] | None, what: str) -> Iterator[str]:
    if beginning:
        run = safe_text(shlex.quote(beginning["run"]))
        yield f"this run began from step {beginning['step']:,} of {run}: trace --run {run} tells {what}"


def _summary(document: dict[str, Any]) -> Iterator[str]:
    if document["num_tokens"] == 0:
        is_apart = document["validation"]["is_kept_apart"]
        yield "no step sees it: it " + ("is of the validation split" if is_apart else "was left out of the dataset")
    seen = [sighting for sighting in document["sightings"] if sighting["state"] == "done"]
    last = f"by step {document['last_step']:,} of {document['total_steps']:,}"
    if seen:
        steps, epochs = (len({sighting[key] for sighting in seen}) for key in ("step", "epoch"))
        yield f"seen in {counted(steps, 'step')} of {counted(epochs, 'epoch')} {last}"
    elif document["num_tokens"]:
        coming = any(sighting["state"] == "to come" for sighting in document["sightings"])
        yield f"never seen {last}" + ("" if coming else ", and no step to come will see it")
    validation = document["validation"]
    if validation["validated"]:
        yield f"validated on: {counted(validation['validated'], 'chunk')} of it, which no step sees"
    if validation["reserved"]:
        yield f"held out, but not validated on: {counted(validation['reserved'], 'chunk')} of it"
    if not validation["validated"] and not validation["reserved"]:
        yield "none of it is validated on" if validation["is_kept_apart"] else "not in the validation range"


def _extent(part: dict[str, Any], num_tokens: int) -> str:
    whole = " (whole)" if part["stop"] - part["start"] == num_tokens else ""
    return f"tokens {part['start']:,} to {part['stop']:,} of {num_tokens:,}{whole}"


def _who(chunk: dict[str, Any]) -> str:
    if chunk["ranks"] is None:
        return f"rank and microbatch {UNKNOWN}"
    ranks = ", ".join(map(str, chunk["ranks"]))
    return f"rank{'s' if len(chunk['ranks']) > 1 else ''} {ranks}, microbatch {chunk['microbatch']}"


def _columns(document: dict[str, Any]) -> str:
    return "".join(f"  {safe_text(document[name])}" for name in ("date", "url", "id") if document.get(name))


def _text(part: dict[str, Any]) -> Iterator[str]:
    """A newline is spelled out and then also made, behind a margin that no text can fake."""
    if "pieces" in part:
        paint = painter()
        for line in lines_of(part["pieces"]):
            yield "      | " + "".join(paint(text, loss) for text, loss in line)
    elif part.get("text"):
        yield "      | " + "\n      | ".join(map(safe_text, part["text"].replace("\n", "\\n\n").split("\n")))
