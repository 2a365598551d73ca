"""Broken, odd and unusual JSON lines files: what each gives, or what is said of it."""

import gzip
import json
import random

import zstandard

from tests.helpers import zstd

TEXTS = [f"some words {i}" for i in range(300)]
FAR = 25_000  # lines: behind what is looked into to plan a build


def lines(rows, **options):
    return b"".join(json.dumps(row, **options).encode() + b"\n" for row in rows)


def unsized(data, **options):
    stream = zstandard.ZstdCompressor(**options).compressobj()
    return stream.compress(data) + stream.flush()


PLAIN = lines({"text": text} for text in TEXTS)
WORDS = random.Random(0).choices([f"word{i}" for i in range(1000)], k=20_000)
LONG = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
ODD_TEXTS = [
    "2020-01-01",
    "12",
    "true",
    '"\\/\b\f\n\r\t',
    "\0 \x1f \x7f \u0085 \u2028 \ufeff",
    "\u05d0\u0301 \U0001f469\u200d\U0001f52c",
    "<|endoftext|> [PAD]",
]

VALID = {
    "plain": ("a.jsonl", PLAIN, TEXTS),
    "no newline at the end": ("a.jsonl", PLAIN[:-1], TEXTS),
    "CRLF": ("a.jsonl", PLAIN.replace(b"\n", b"\r\n"), TEXTS),
    "blank lines": ("a.jsonl", b"\n \t\r\n" + PLAIN.replace(b"\n", b"\n\n", 9) + b"  ", TEXTS),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + PLAIN, TEXTS),
    "null, missing and empty": (
        "a.jsonl",
        b'{"text": null}\n{"id": 1}\n{}\n{"text": ""}\n{"text": " "}\n{"text": "a"}',
        [None, None, None, "", " ", "a"],
    ),
    "other keys, of other types": (
        "a.jsonl",
        lines({"x": [{}, 1, "a", None][i % 4], "text": text, "y": {"text": 1}} for i, text in enumerate(TEXTS)),
        TEXTS,
    ),
    "a key twice": ("a.jsonl", b'{"text": 1, "text": "a"}\n{"text": "b", "text": null}', ["a", None]),
    "escapes": ("a.jsonl", lines({"text": text} for text in ODD_TEXTS), ODD_TEXTS),
    "no escapes": ("a.jsonl", lines(({"text": text} for text in ODD_TEXTS), ensure_ascii=False), ODD_TEXTS),
    "half a character elsewhere": ("a.jsonl", b'{"text": "a", "x": "\\ud800"}', ["a"]),
    "spaces before every line": ("a.jsonl", b" " + PLAIN.replace(b"\n", b" \n "), TEXTS),
    "one frame": ("a.jsonl.zst", zstd(PLAIN), TEXTS),
    "two frames": ("a.jsonl.zst", zstd(PLAIN[:5000]) + zstd(PLAIN[5000:]), TEXTS),
    "a frame of nothing, then one": ("a.jsonl.zst", zstd(b"") + zstd(PLAIN, write_checksum=True), TEXTS),
    "frames that do not say their size": ("a.jsonl.zst", unsized(PLAIN[:5000]) + unsized(PLAIN[5000:]), TEXTS),
    "a frame to be skipped": ("a.jsonl.zst", b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(PLAIN), TEXTS),
    "level 19": ("a.jsonl.zst", zstd(PLAIN, level=19), TEXTS),
    "a window of 256 MiB": ("a.jsonl.zst", unsized(PLAIN, compression_params=LONG), TEXTS),
}
EMPTY = {
    "empty": ("a.jsonl", b"", "has no rows: name an input that holds text"),
    "a frame of nothing": ("a.jsonl.zst", zstd(b""), "has no rows: name an input that holds text"),
    "blank lines alone": ("a.jsonl", b"\n\r\n  \n", "has no rows: name an input that holds text"),
    "a byte order mark alone": ("a.jsonl", b"\xef\xbb\xbf", "has no rows: name an input that holds text"),
    "nulls alone": ("a.jsonl", b'{"text": null}\n' * 9, "no documents: every text in the input is null or empty"),
}


def broken(line, before=150):
    """Lines of which one is broken."""
    return b'{"text": "a"}\n' * before + line + b'\n{"text": "b"}\n' * 9


FLIPPED = bytearray(zstd(" ".join(WORDS).encode(), write_checksum=True))
FLIPPED[len(FLIPPED) // 2] ^= 1
INVALID = {
    "gzip": ("a.jsonl", gzip.compress(PLAIN), "is gzip-compressed"),
    "cut gzip": ("a.jsonl", gzip.compress(PLAIN)[:50], "is gzip-compressed"),
    "zstd": ("a.jsonl", zstd(PLAIN), "is zstd-compressed"),
    "parquet": ("a.jsonl", b"PAR1" + bytes(100), "is a parquet file"),
    "not compressed": ("a.jsonl.zst", PLAIN, "is not a zstd file (begins with b'{\"te', not "),
    "empty zstd": ("a.jsonl.zst", b"", "is empty (0 bytes)"),
    "cut zstd": ("a.jsonl.zst", zstd(PLAIN)[:200], "is cut short or damaged (the zstd frame that begins at byte 0 "),
    "cut second frame": ("a.jsonl.zst", zstd(b"{}\n") + zstd(PLAIN)[:-1], "the zstd frame that begins at byte 12 does"),
    "flipped bit": ("a.jsonl.zst", bytes(FLIPPED), "cannot be decompressed after 0 decompressed bytes ("),
    "more behind a frame": ("a.jsonl.zst", zstd(b"{}\n") + PLAIN, "has something else than a zstd frame at byte 12"),
    "array": ("a.jsonl", json.dumps([{"text": "a"}]).encode(), "begins with a list"),
    "object on many lines": ("a.jsonl", json.dumps({"text": "a"}, indent=1).encode(), "line 1 is not valid JSON ("),
    "UTF-16": (
        "a.jsonl",
        PLAIN.decode().encode("utf-16"),
        "line 1 is not valid UTF-8 (byte 0xff at byte 1 of the line)",
    ),
    "no text": (
        "a.jsonl",
        lines({"id": i, "content": "a"} for i in range(300)),
        "has no column 'text' in its first 300 rows (they have id, content)",
    ),
    "empty objects": ("a.jsonl", b"{}\n{}", "has no column 'text' in its first 2 rows (they have none)"),
    "bad line": ("a.jsonl", broken(b'{"text": "a}'), "line 151 is not valid JSON (unterminated string starting at ch"),
    "last line cut": ("a.jsonl", PLAIN[:-5], "line 300 is not valid JSON ("),
    "number": ("a.jsonl", broken(b'{"text": 1}'), "line 151 has 'text', which is a number, not a string"),
    "blank lines count": ("a.jsonl", b"\n\r\n" + broken(b"{"), "line 153 is not valid JSON ("),
}
FAR_IN = {  # found while the text is read
    "bad line": ("a.jsonl", broken(b'{"text" "a"}', FAR), "line 25,001 is not valid JSON (expecting ':' del"),
    "bad line in zstd": ("a.jsonl.zst", zstd(broken(b"{]", FAR)), "line 25,001 is not valid JSON (expecting prop"),
    "zeros at the end": ("a.jsonl", broken(b"", FAR) + bytes(5000), "line 25,019 is not valid JSON (expecting value"),
    "two objects on a line": (
        "a.jsonl",
        broken(b'{"text": "a"}{"text": "b"}', FAR),
        "line 25,001 is not valid JSON (",
    ),
    "null": ("a.jsonl", broken(b"null", FAR), "line 25,001 is null, not an object"),
    "list": ("a.jsonl", broken(b'{"text": ["a"]}', FAR), "line 25,001 has 'text', which is a list, not a string"),
    "object": ("a.jsonl", broken(b'{"text": {}}', FAR), "line 25,001 has 'text', which is an object, not a string"),
    "half a character": (
        "a.jsonl",
        broken(b'{"text": "\\ud800"}', FAR),
        r"line 25,001 has half a character (\ud800) in",
    ),
    "not UTF-8": ("a.jsonl", broken(b'{"text": "\xff"}', FAR), "line 25,001 is not valid UTF-8 (byte 0xff at byte 11"),
}
