"""Characters of a sequence of ids: which neighbours are parts of one character, and how such parts are written.

A piece of a byte-level vocabulary may be a part of a character: in SmolLM2's two ids are one Chinese character. This is
the only place that groups ids into characters. Bytes that are no character are written as SentencePiece spells them:
``<0xE4>``.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Iterable
from typing import NamedTuple

from pellucid.tokenize.stages.decode import Decoder
from pellucid.tokenize.vocabulary import checked_id

SPELLED = "pellucid.spelled"
"""The name of the error handler that writes bytes that are not UTF-8 as ``<0xE4>``."""


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    return "".join(f"<0x{byte:02X}>" for byte in wrong), error.end


codecs.register_error(SPELLED, _spell)


class CharacterGroup(NamedTuple):
    """The ids from number ``first`` to ``stop`` - 1, which share characters, and their ``text``."""

    first: int
    stop: int
    text: str


class CharacterGrouper:
    """Groups ids that come one at a time, of a vocabulary of ``size`` ids.

    A group ends where a character ends, or where the next id cannot go on with it.
    """

    def __init__(self, decoder: Decoder, size: int) -> None:
        self._decoder, self._size = decoder, size
        self._begin = self._count = 0
        self._data = self._open = b""  # of the last group; of its last character, if it is not whole
        self._started = False

    def push(self, token: int) -> CharacterGroup:
        """The group of an id, as far as it is known.

        Raises :class:`InvalidRequest` for an id outside the vocabulary.
        """
        data = self._decoder.piece(checked_id(token, self._size), not self._started)
        self._started = self._started or self._decoder.begun(data)
        if not _goes_on(self._open, data):
            self._begin, self._data = self._count, b""
            self._open = b""
        self._count, self._data = self._count + 1, self._data + data
        self._open = _open_end(self._open + data)
        return CharacterGroup(self._begin, self._count, self._data.decode("utf-8", SPELLED))

    def then(self, token: int) -> CharacterGroup:
        """The group that ``push`` would return; the id is not pushed."""
        return copy.copy(self).push(token)


def groups(grouper: CharacterGrouper, ids: Iterable[int]) -> list[CharacterGroup]:
    """The groups of some ids that follow those that the grouper has had; the first may begin among these."""
    found: list[CharacterGroup] = []
    for token in ids:
        group = grouper.push(token)
        if found and found[-1].first == group.first:
            found.pop()
        found.append(group)
    return found


def several(found: Iterable[CharacterGroup]) -> list[CharacterGroup]:
    """The groups of several ids: the others are what their ids are."""
    return [group for group in found if group.stop - group.first > 1]


def _goes_on(begun: bytes, data: bytes) -> bool:
    """True if ``data`` continues the incomplete character ``begun``."""
    try:
        _utf8("strict").decode(begun + data)
    except UnicodeDecodeError as error:
        return bool(begun) and error.start > 0
    return bool(begun) and not _is_surrogate(begun + data)


def _open_end(data: bytes) -> bytes:
    """The bytes at the end that may be the beginning of a character."""
    reader = _utf8("replace")
    reader.decode(data)
    held, _ = reader.getstate()
    return b"" if _is_surrogate(held) else held


def _is_surrogate(data: bytes) -> bool:
    """True if the bytes begin a surrogate: invalid in UTF-8, but Python's decoder waits for the third byte."""
    return len(data) > 1 and data[0] == 0xED and data[1] >= 0xA0


_utf8 = codecs.getincrementaldecoder("utf-8")
