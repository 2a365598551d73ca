"""The input files of a finished dataset, those that are still where and what they were.

One that is not is never read: what it says now is not what was trained on.
"""

from functools import cached_property
from pathlib import Path

from preprocess.footer import BadFileError
from preprocess.sources import file_identity, find_sources
from shared.format import Index
from shared.terminal import safe_text

SUFFIX = "-tokens"


class Inputs:
    """The inputs at `data` of the dataset in `tokens`; None: where `make tokenize` has them, beside the dataset."""

    def __init__(self, tokens: Path, index: Index, data: str | None) -> None:
        self._tokens, self._index, self._data = tokens, index, data
        self._problems: dict[int, str | None] = {}

    def path(self, number: int) -> Path:
        """Where an input file without a problem is."""
        return self._files[self._index.sources[number].path]

    def problem(self, number: int) -> str | None:
        """Why an input file cannot be asked, or None."""
        if number not in self._problems:
            self._problems[number] = self._problem(number)
        return self._problems[number]

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The input files that there are. A path of the index is only looked up here, so it leads nowhere else."""
        data = self._data
        if data is None:
            name = str(self._tokens.absolute())
            data = name.removesuffix(SUFFIX)
            if data == name or not Path(data).is_dir():
                return {}
        root, files = find_sources(data)
        return {file.relative_to(root).as_posix(): file for file in files}

    def _problem(self, number: int) -> str | None:
        source = self._index.sources[number]
        path = self._files.get(source.path)
        if path is None:
            where = f"not in {self._data}" if self._data else "not found: give the directory of the inputs with --data"
            return safe_text(f"{source.path} is {where}")
        try:
            if path.stat().st_size != source.size_bytes or file_identity(path) != source.identity:
                return safe_text(f"{source.path} is not what it was when the dataset was made")
        except BadFileError as error:
            return safe_text(f"{source.path} {error.reason}")
        return None
