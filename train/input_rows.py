"""What `preprocess` knows of input rows: another process is asked, so that nothing of it is loaded here."""

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InputError
from shared.terminal import safe_text

Row = tuple[str, int]
MOST_FOUND, MOST_SHOWN = 10, 5


@dataclass(frozen=True)
class Asked:
    """The dataset whose rows are asked for, and where its inputs are, if not beside it."""

    tokens: Path
    data: str | None
    names: tuple[str, ...] = ()
    """Of the datasets in it, if it is the directory of several: their input files are told as NAME/path, and are in a
    directory NAME of `data`, if there is one, else in `data` itself."""

    def about(self, rows: Iterable[Row]) -> dict[Row, dict[str, Any]]:
        """What is told of each of `rows`.

        Raises: InputError with the message of who was asked.
        """
        lines = dict[str, str]()
        for source, row in dict.fromkeys(rows):
            name, path = self._split(source)
            lines[name] = lines.get(name, "") + json.dumps({"source": path, "row": row}) + "\n"
        told = [document for name, wanted in lines.items() for document in self._ask(name, ["-"], wanted)]
        return {(document["source"], document["row"]): document for document in told}

    def find(self, wanted: str) -> list[dict[str, Any]]:
        """What is told of each document with this id, url or piece of text.

        Raises: InputError if there is none, or more than MOST_FOUND.
        """
        found, problems = list[dict[str, Any]](), list[str]()
        for name in self.names or ("",):
            try:
                found += self._ask(name, [f"--find={wanted}"], "")
            except InputError as error:  # that it has none, or not all of it can be read; another one may have it
                problems.append(str(error))
        if not found:
            raise InputError("; ".join(problems))
        if len(found) <= MOST_FOUND:
            return found
        shown = ", ".join(f"{document['source']}:{document['row']}" for document in found[:MOST_SHOWN])
        raise InputError(
            f"'{safe_text(wanted[:60])}' is in {len(found):,} documents: give a longer text, an id, or one of them: "
            f"{safe_text(shown)} and {len(found) - MOST_SHOWN:,} more"
        )

    def _split(self, source: str) -> tuple[str, str]:
        """The dataset that an input file is of, and what the file is called there."""
        if not self.names:
            return "", source
        name, _, path = source.partition("/")
        return name, path

    def _ask(self, name: str, arguments: list[str], lines: str) -> list[dict[str, Any]]:
        """What is told by the dataset of that name, or the only one."""
        where = [str(self.tokens / name), *arguments]
        if self.data is not None:
            own = Path(self.data, name)
            where.append(f"--data={own if own.exists() else self.data}")
        command = [sys.executable, "-m", "preprocess", "documents", *where]
        asked = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        if asked.returncode:
            words = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
            raise InputError(words[-1].removeprefix("error: "))
        told = [json.loads(line) for line in asked.stdout.splitlines()]
        return [document | {"source": f"{name}/{document['source']}"} if name else document for document in told]
