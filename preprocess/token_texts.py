"""The text that each id of a sequence adds to it, as far as one id has a text of its own."""

import codecs
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from preprocess.engines import byte_letters
from preprocess.vocabulary import spelled_bytes


class TokenText(NamedTuple):
    """The text that a token adds; empty where it `is_part` of a character that a later one completes."""

    text: str
    is_part: bool = False
    is_special: bool = False


class TokenTexts:
    """The texts of the ids of one tokenizer; without one, an id has no text but its number."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._names: dict[int, str] = {}
        self._added: dict[int, str] = {}
        self._is_of_bytes = False
        if tokenizer is not None:
            vocabulary = tokenizer.get_vocab(with_added_tokens=True)
            self._names = {number: name for name, number in vocabulary.items()}
            self._added = {number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()}
            self._is_of_bytes = all(letter in vocabulary for letter in byte_letters())

    def one(self, number: int) -> str:
        """What an id stands for alone, bytes that are no whole character spelled out."""
        if number in self._added or not self._is_of_bytes:
            return self._added.get(number, self._names.get(number, f"[{number}]"))
        return (
            spelled_bytes(self._names[number]).decode(errors="backslashreplace")
            if number in self._names
            else f"[{number}]"
        )

    def of(self, ids: Iterable[int]) -> list[TokenText]:
        """What each of `ids` adds to the text; a character of several tokens is all with the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        texts: list[TokenText] = []
        for number in ids:
            if number in self._added or not self._is_of_bytes or number not in self._names:
                texts = _ended(texts, decoder.decode(b"", final=True))
                texts.append(TokenText(self.one(number), is_special=number in self._added))
                continue
            text = decoder.decode(spelled_bytes(self._names[number]))
            texts.append(TokenText(text, is_part=not text))
        return _ended(texts, decoder.decode(b"", final=True))


def _ended(texts: list[TokenText], left: str) -> list[TokenText]:
    """`texts`, the last of them with the bytes that became no character."""
    if left:
        texts[-1] = TokenText(texts[-1].text + left)
    return texts
