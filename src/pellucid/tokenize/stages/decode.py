"""Detokenization: ids to text, all at once or as a stream of whole characters.

The decoder of a kind returns the bytes of each id. The text is the bytes decoded as UTF-8, with U+FFFD for invalid
bytes, as by ``bytes.decode("utf-8", errors="replace")``. The stream holds back the bytes of an incomplete character
(at most three), and text that later steps hold back (``decode_steps.py``). So its joined output equals the result of
decoding all ids at once.
"""

from __future__ import annotations

import codecs
import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import NamedTuple

from pellucid.tokenize.vocabulary import checked_id

SPACE = "▁"
"""The character that SentencePiece writes for a space."""


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte alphabet of byte-level vocabularies: character → byte.

    Printable Latin-1 characters represent their own bytes; U+0100 and up represent the other bytes in order (Radford et
    al. 2019, GPT-2, ``encoder.py``, ``bytes_to_unicode``).
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in own)
    return {chr(byte): byte for byte in own} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


@cache
def byte_letters() -> list[str]:
    """The character of each byte in byte-level vocabularies, (256,)."""
    return sorted(byte_alphabet(), key=byte_alphabet().__getitem__)


class TextStream:
    """Changes a text that arrives in parts."""

    def push(self, part: str) -> str:
        """Add ``part`` and return the text that later parts cannot change."""
        raise NotImplementedError

    def flush(self) -> str:
        """The rest of the text."""
        return ""


class Decoder(ABC):
    """Returns the bytes of a kind's pieces.

    ``absent`` has the ids that have no text and are skipped. If ``is_table``, the text is the concatenated bytes of the
    ids, changed by ``steps``; otherwise only ``stream`` computes the text.
    """

    absent: frozenset[int] = frozenset()
    is_table = True

    @abstractmethod
    def piece(self, token_id: int, first: bool) -> bytes:
        """The bytes of an id; ``first`` is True if no text precedes it."""

    def begins_text(self, data: bytes) -> bool:
        """True if a piece with the bytes ``data`` begins the text, so that the next piece is not ``first``."""
        return True

    def steps(self) -> list[TextStream]:
        """New steps that change the text after the bytes are decoded."""
        return []

    def stream(self) -> ByteStream:
        """A new stream of ids."""
        return ByteStream(self)


class SentencePieceDecoder(Decoder):
    """Joins pieces as SentencePiece does, with ``▁`` for the space; each id in ``byte_values`` represents one byte.

    ``strip`` drops a leading space of the whole text. ``strip_all`` drops the leading space of each piece until a piece
    has text. ``surfaces`` maps ids whose text differs from their piece to this text, for example the unknown token.
    """

    def __init__(
        self, tokens: Sequence[str], byte_values: dict[int, int], strip: bool, strip_all: bool, surfaces: dict[int, str]
    ) -> None:
        self._tokens, self._bytes, self._strip = tokens, byte_values, strip
        self._strip_all, self._surfaces = strip_all, surfaces

    def piece(self, token_id: int, first: bool) -> bytes:
        surface, value = self._surfaces.get(token_id), self._bytes.get(token_id)
        if surface is not None:
            return surface.encode()
        if value is not None:
            return bytes([value])
        text = self._tokens[token_id].replace(SPACE, " ")
        return (text.removeprefix(" ") if first and self._strip else text).encode()

    def begins_text(self, data: bytes) -> bool:
        return bool(data) or not self._strip_all


class BytesDecoder(Decoder):
    """Ids that are bytes plus ``shift``; the pieces of smaller and larger ids are plain text."""

    def __init__(self, tokens: Sequence[str], shift: int) -> None:
        self._tokens, self._shift = tokens, shift

    def piece(self, token_id: int, first: bool) -> bytes:
        value = token_id - self._shift
        return bytes([value]) if 0 <= value < 256 else self._tokens[token_id].encode()


class PieceBytes(dict[int, bytes]):
    """The bytes of each id that is not the first, computed on demand; no bytes for ids in ``skip``.

    Keys must be ints. Raises :class:`InvalidRequest` for an id outside the vocabulary of ``size`` ids.
    """

    def __init__(self, decoder: Decoder, size: int, skip: frozenset[int]) -> None:
        self._decoder, self._size, self._skip = decoder, size, skip | decoder.absent

    def __missing__(self, token_id: int) -> bytes:
        skipped = checked_id(token_id, self._size) in self._skip
        data = self[token_id] = b"" if skipped else self._decoder.piece(token_id, False)
        return data

    def text(self, ids: Sequence[int]) -> str:
        """The text of all ids, equal to the output of `StreamDecoder` for the ids one at a time."""
        all_ids = list(ids)
        if not set(map(type, all_ids)) <= {int}:
            all_ids = [checked_id(token_id, self._size) for token_id in all_ids]
        if not self._decoder.is_table:
            stream = StreamDecoder(self._decoder, self._size, self._skip)
            return "".join([*map(stream.push, all_ids), stream.flush()])
        parts, count = list[bytes](), 0
        for token_id in all_ids:
            count += 1
            if checked_id(token_id, self._size) not in self._skip:
                parts.append(self._decoder.piece(token_id, True))
                if self._decoder.begins_text(parts[-1]):
                    break
        text = b"".join([*parts, *map(self.__getitem__, all_ids[count:])]).decode("utf-8", "replace")
        for step in self._decoder.steps():
            text = step.push(text) + step.flush()
        return text


def begins_surrogate(data: bytes) -> bool:
    """True if the bytes begin a surrogate. It is invalid in UTF-8, but Python's decoder waits for its third byte."""
    return len(data) > 1 and data[0] == 0xED and data[1] >= 0xA0


class UTF8Stream:
    """The text of bytes that arrive in parts, with U+FFFD for bytes that are not UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """The characters that the bytes complete."""
        text = self._utf8.decode(data)
        held, _ = self._utf8.getstate()
        if begins_surrogate(held):
            self._utf8.reset()
            text += "\ufffd\ufffd"
        return text

    def flush(self) -> str:
        """U+FFFD if the last character is incomplete."""
        return self._utf8.decode(b"", final=True)


class ByteStream:
    """The text of ids that arrive one at a time: their bytes, then the decoder's steps."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._utf8, self._steps = decoder, UTF8Stream(), decoder.steps()
        self._first = True

    def push(self, token_id: int) -> str:
        """Add an id and return the text that later ids cannot change."""
        data = self._decoder.piece(token_id, self._first)
        self._first = self._first and not self._decoder.begins_text(data)
        return self._changed(self._utf8.push(data))

    def _changed(self, text: str) -> str:
        for step in self._steps:
            text = step.push(text)
        return text

    def flush(self) -> str:
        """The rest of the text."""
        return self._flushed(self._utf8.flush())

    def _flushed(self, text: str) -> str:
        """The rest of the text after all steps; ``text`` is the last part of their input."""
        for step in self._steps:
            text = step.push(text) + step.flush()
        return text


class StreamDecoder:
    """Turns ids into text one at a time. Created by ``Tokenizer.stream``, for one sequence."""

    def __init__(self, decoder: Decoder, size: int, skip: Collection[int]) -> None:
        self._decoder, self._size, self._skip = decoder, size, decoder.absent.union(skip)
        self._stream = decoder.stream()

    def push(self, token_id: int) -> str:
        """Add an id and return the text that it completes. Raises :class:`InvalidRequest` for an id out of range."""
        token_id = checked_id(token_id, self._size)
        return "" if token_id in self._skip else self._stream.push(token_id)

    def flush(self) -> str:
        """Return the rest of the text (U+FFFD if the last character is incomplete) and reset the stream."""
        rest = self._stream.flush()
        self._stream = self._decoder.stream()
        return rest


# Groups a sequence of ids into characters. A piece of a byte-level vocabulary may be a part of a character: two ids of
# SmolLM2's vocabulary form one Chinese character. Adjacent ids that are parts of one character form a group. A byte
# that is no character is written in SentencePiece's spelling, ``<0xE4>``.

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
        """Add an id and return its group so far. Raises :class:`InvalidRequest` for an id outside the vocabulary."""
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
