"""Groups a sequence of ids into characters. Adjacent ids that are parts of one character form a group.

A piece of a byte-level vocabulary may be a part of a character. For example, two ids of SmolLM2's vocabulary form one
Chinese character. Only this module groups ids into characters. A byte that is no character is written in
SentencePiece's spelling, ``<0xE4>``.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Iterable
from typing import NamedTuple

from pellucid.tokenize.stages.decode import Decoder, begins_surrogate
from pellucid.tokenize.vocabulary import checked_id

SPELLED = "pellucid.spelled"
"""The name of the error handler that writes bytes that are not UTF-8 as ``<0xE4>``."""


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    return "".join(f"<0x{byte:02X}>" for byte in wrong), error.end


codecs.register_error(SPELLED, _spell)


class CharacterGroup(NamedTuple):
    """The ids from index ``first`` to ``stop`` - 1, which share characters, and their ``text``."""

    first: int
    stop: int
    text: str


class CharacterGrouper:
    """Groups ids of a vocabulary of ``size`` ids; the ids arrive one at a time.

    A group ends at the end of a character, or before an id that cannot continue the character.
    """

    def __init__(self, decoder: Decoder, size: int) -> None:
        self._decoder, self._size = decoder, size
        self._begin = self._count = 0
        self._data = self._open = b""  # bytes of the last group; bytes of its last character if incomplete
        self._started = False

    def push(self, token: int) -> CharacterGroup:
        """Add an id and return its group so far.

        Raises :class:`InvalidRequest` for an id outside the vocabulary.
        """
        data = self._decoder.piece(checked_id(token, self._size), not self._started)
        self._started = self._started or self._decoder.begins_text(data)
        if not _continues(self._open, data):
            self._begin, self._data = self._count, b""
            self._open = b""
        self._count, self._data = self._count + 1, self._data + data
        self._open = _open_end(self._open + data)
        return CharacterGroup(self._begin, self._count, self._data.decode("utf-8", SPELLED))

    def then(self, token: int) -> CharacterGroup:
        """The group that ``push`` would return, without adding the id."""
        return copy.copy(self).push(token)


def groups(grouper: CharacterGrouper, ids: Iterable[int]) -> list[CharacterGroup]:
    """Push ids and return their groups; the first group may begin with ids that were pushed earlier."""
    groups_so_far: list[CharacterGroup] = []
    for token in ids:
        group = grouper.push(token)
        if groups_so_far and groups_so_far[-1].first == group.first:
            groups_so_far.pop()
        groups_so_far.append(group)
    return groups_so_far


def several(found: Iterable[CharacterGroup]) -> list[CharacterGroup]:
    """The groups of two or more ids."""
    return [group for group in found if group.stop - group.first > 1]


def _continues(partial: bytes, data: bytes) -> bool:
    """True if ``data`` continues the incomplete character ``partial``."""
    try:
        _utf8("strict").decode(partial + data)
    except UnicodeDecodeError as error:
        return bool(partial) and error.start > 0
    return bool(partial) and not begins_surrogate(partial + data)


def _open_end(data: bytes) -> bytes:
    """The bytes at the end of ``data`` that may begin a character."""
    reader = _utf8("replace")
    reader.decode(data)
    held, _ = reader.getstate()
    return b"" if begins_surrogate(held) else held


_utf8 = codecs.getincrementaldecoder("utf-8")
