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

    def about(self, rows: Iterable[Row]) -> dict[Row, dict[str, Any]]:
        """What is told of each of `rows`.

        Raises: InputError with the message of who was asked.
        """
        lines = "".join(json.dumps({"source": source, "row": row}) + "\n" for source, row in dict.fromkeys(rows))
        told = self._ask(["-"], lines) if lines else []
        return {(document["source"], document["row"]): document for document in told}

    def find(self, wanted: str) -> list[dict[str, Any]]:
        """What is told of each document with this id, url or piece of text.

        Raises: InputError if there is none, or more than MOST_FOUND.
        """
        found = self._ask([f"--find={wanted}"], "")
        if len(found) <= MOST_FOUND:
            return found
        shown = ", ".join(f"{document['source']}:{document['row']}" for document in found[:MOST_SHOWN])
        raise InputError(
            f"'{safe_text(wanted[:60])}' is in {len(found):,} documents: give a longer text, an id, or one of them: "
            f"{safe_text(shown)} and {len(found) - MOST_SHOWN:,} more"
        )

    def _ask(self, arguments: list[str], lines: str) -> list[dict[str, Any]]:
        where = [str(self.tokens), *arguments, *([] if self.data is None else [f"--data={self.data}"])]
        command = [sys.executable, "-m", "preprocess", "documents", *where]
        asked = subprocess.run(command, input=lines, capture_output=True, text=True, check=False)
        if asked.returncode:
            words = asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"]
            raise InputError(words[-1].removeprefix("error: "))
        return [json.loads(line) for line in asked.stdout.splitlines()]
