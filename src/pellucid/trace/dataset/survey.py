"""The texts of a corpus as token ids, and their division into shards.

The division depends on the texts alone, so that every machine divides a corpus in the same way.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.positions import EVERY, Positions, TokenTexts

MOST_TOKENS = 1 << 18
"""Maximum number of tokens that a shard's texts have, so that an interruption loses little work."""
REPORTED = 1024
"""Texts between two reports of progress."""


class Corpus(Protocol):
    """Texts in order: ``util.text_file.TextFile`` or ``TextList``."""

    def texts(self, start: int = 0) -> Iterator[tuple[str, str]]:
        """Yield the place of each text, for messages, and the text, after the first ``start`` texts."""
        ...


class ReadText(NamedTuple):
    """A text: its ``number``, its token ids, and the positions of its rows."""

    number: int
    ids: list[int]
    positions: NDArray[np.int64]


class ShardTexts(Struct, frozen=True):
    """The texts of shard ``number``: ``texts`` of the corpus, which are the ``rows`` of the dataset."""

    number: int
    texts: range
    rows: range


class Survey(NamedTuple):
    """The number of rows and of tokens of each text, and a hash of the token ids of all texts."""

    rows: Sequence[int]
    tokens: Sequence[int]
    sha256: str

    def shards(self, row_bytes: int, shard_bytes: int) -> list[ShardTexts]:
        """Divide the corpus into shards of whole texts, of at most ``shard_bytes`` if a text is not larger."""
        found = list[ShardTexts]()
        first = first_row = rows = tokens = 0
        for number, (own, count) in enumerate(zip(self.rows, self.tokens)):
            full = (rows + own) * row_bytes > shard_bytes or tokens + count > MOST_TOKENS
            if full and number > first:
                found.append(ShardTexts(len(found), range(first, number), range(first_row, first_row + rows)))
                first, first_row, rows, tokens = number, first_row + rows, 0, 0
            rows, tokens = rows + own, tokens + count
        last = range(first, len(self.rows))
        return [*found, ShardTexts(len(found), last, range(first_row, first_row + rows))]


class CorpusReader:
    """Reads the texts of ``corpus``. ``encode`` returns the token ids of a text, and ``piece`` the text of a token.

    A text has a row for each of its ``tokens``, or a single row if ``per_text``.
    """

    def __init__(
        self,
        corpus: Corpus,
        encode: Callable[[str], list[int]],
        tokens: Positions,
        piece: Callable[[int], str],
        *,
        per_text: bool,
    ) -> None:
        self._corpus, self._encode, self._tokens, self._piece = corpus, encode, tokens, piece
        self._per_text = per_text

    def texts(self, chosen: Sequence[range]) -> Iterator[ReadText]:
        """Yield the texts with the ``chosen`` numbers, in ascending ranges. Other texts are skipped.

        Raises:
            InvalidRequest: a text cannot be read, or lacks a selected token; the message has the place of the text.
        """
        texts, number = self._corpus.texts(), 0
        for own in chosen:
            for place, text in texts:
                number += 1
                if number > own.start:
                    yield self._read(number - 1, place, text)
                if number == own.stop:
                    break

    def _read(self, number: int, place: str, text: str) -> ReadText:
        try:
            ids = self._encode(text)
            if self._per_text or self._tokens == EVERY:
                return ReadText(number, ids, np.arange(1 if self._per_text else len(ids)))
            tokens = self._tokens.resolve(TokenTexts(ids, self._piece))
        except InvalidRequest as error:
            raise type(error)(f"{place}: {error}") from None
        return ReadText(number, ids, tokens.listed(len(ids)))

    def survey(self, progress: Callable[[int], object]) -> Survey:
        """Read all texts once, and count. ``progress`` is called with the number of texts.

        Raises:
            InvalidRequest: as ``texts``, or no text has a row.
        """
        rows, tokens, digest = array("Q"), array("Q"), hashlib.sha256()
        for text in self.texts([range(1 << 62)]):
            rows.append(len(text.positions))
            tokens.append(len(text.ids))
            digest.update(len(text.ids).to_bytes(8, "little") + np.array(text.ids, "<i4").tobytes())
            if len(rows) % REPORTED == 0:
                progress(len(rows))
        if not rows or not sum(rows):
            has = "no texts" if not rows else "no selected tokens"
            raise InvalidRequest(f"corpus: has {has}: give a corpus with at least one")
        return Survey(rows, tokens, digest.hexdigest())
