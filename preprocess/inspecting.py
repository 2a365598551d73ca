"""What `inspect` was asked for: a dataset or some of its chunks, for a terminal, for programs or as a page."""

import json
from dataclasses import asdict

from preprocess import report
from preprocess.chunks import Chunk, Chunks
from preprocess.inspection import Inspection, look
from preprocess.options import InspectOptions
from shared.directories import is_directory
from shared.errors import ConfigError
from shared.storage import write_file
from shared.terminal import safe_text

PAGE_CHUNKS = 12
PAGE_IDS = 24_576  # of all chunks on a page, some 40 bytes each


def inspect(options: InspectOptions) -> None:
    """Print what was asked for, or write it to a page.

    Raises: UserError if there is no such dataset or chunk, or the options do not go together.
    """
    _check(options)
    found = look(options.tokens, seed=options.seed, verify=options.verify)
    if options.html is not None:
        _write_page(options, found)
    elif options.chunk is None and options.sample is None:
        if options.as_json:
            print(json.dumps(report.document(found)))
        else:
            report.show(found)
    else:
        chunks = _chunks(options, found, options.sample or 0)
        if options.as_json:
            print(json.dumps(asdict(chunks[0]) if options.sample is None else [asdict(chunk) for chunk in chunks]))
        else:
            for chunk in chunks:
                report.show_chunk(chunk)


def _check(options: InspectOptions) -> None:
    if options.sample is not None and options.sample < 1:
        raise ConfigError(f"--sample is {options.sample}; a number of chunks is wanted, 1 or more")
    if options.html is None:
        return
    name = safe_text(str(options.html))
    if options.as_json:
        raise ConfigError("--json and --html were both given: ask for one of them")
    if options.html.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--html is {name}; the name of a file that ends in .html is wanted")
    if not is_directory(options.html.parent):
        raise ConfigError(f"--html is {name}, in a directory that is not there: make it first")


def _chunks(options: InspectOptions, found: Inspection, number: int) -> list[Chunk]:
    """The chunk asked for, if one was, and `number` drawn ones, with what the inputs say of their documents."""
    from preprocess.origins import with_origins

    chunks = Chunks(found.directory, found.index, found.tokenizer)
    asked = [] if options.chunk is None else [options.chunk]
    drawn = chunks.drawn(number, options.seed, found.readable)
    read = [chunks.read(number) for number in asked + [number for number in drawn if number not in asked]]
    return with_origins(found.directory, options.data, read)


def _write_page(options: InspectOptions, found: Inspection) -> None:
    from preprocess.page import dataset_page

    assert options.html is not None
    number = options.sample or max(1, min(PAGE_CHUNKS, PAGE_IDS // found.index.chunk_length))
    text = dataset_page(found, _chunks(options, found, number), PAGE_IDS, options.chunk).encode()
    write_file(options.html, [text])
    print(f"wrote {safe_text(str(options.html))} ({len(text) / 1e3:,.0f} kB): open it in a browser")
