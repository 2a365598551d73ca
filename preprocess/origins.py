"""What the inputs of a dataset say of the documents in some chunks, as far as the inputs are what they were."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from preprocess.chunks import Chunk, Piece
from preprocess.documents import Document, Documents, Row
from preprocess.sources import find_sources
from shared.errors import InputError


def with_origins(directory: Path, data: str | None, chunks: Sequence[Chunk]) -> list[Chunk]:
    """`chunks` with id, url and date of each of their documents, or why they are not known.

    Raises: InputError if `data` names no inputs.
    """
    if data is not None:
        find_sources(data)
    wanted: dict[str, set[Row]] = defaultdict(set)
    for chunk in chunks:
        for piece in chunk.documents:
            wanted[piece.source].add((piece.source, piece.row))
    documents, told, problems = Documents(directory, data), dict[Row, Document](), dict[str, str]()
    for source, rows in wanted.items():
        try:
            told |= {(document.source, document.row): document for document in documents.of_rows(rows)}
        except InputError as error:  # what is wrong with one input says nothing of the others
            problems[source] = str(error)
    return [
        replace(chunk, documents=[_with_origin(piece, told, problems) for piece in chunk.documents]) for chunk in chunks
    ]


def _with_origin(piece: Piece, told: dict[Row, Document], problems: dict[str, str]) -> Piece:
    if piece.source in problems:
        return replace(piece, problem=problems[piece.source])
    document = told[piece.source, piece.row]
    return replace(piece, id=document.id, url=document.url, date=document.date, problem=document.problem)
