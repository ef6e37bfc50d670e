"""Detokenization: ids to text, all at once or as a stream.

The decoder of a kind gives the bytes of each id; the text is these bytes decoded as UTF-8, with U+FFFD for invalid
bytes, as by ``bytes.decode("utf-8", errors="replace")``. The stream holds back only the bytes of an incomplete
character (at most three), so that its joined output equals the result of decoding all ids at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Sequence
from typing import Protocol

from pellucid.tokenize.vocabulary import checked_id

SPACE = "▁"
"""The character that SentencePiece writes for a space."""
_BYTES: dict[str, int] = {}


class Decoder(Protocol):
    """Gives the bytes of a kind's pieces."""

    def piece(self, token_id: int, first: bool) -> bytes:
        """The bytes of an id; ``first``: no text comes before it."""
        ...

    def begun(self, data: bytes) -> bool:
        """Whether the text has begun after a piece with these bytes, so that the next piece is not ``first``."""
        ...


def byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level vocabularies.

    Printable Latin-1 characters stand for themselves; U+0100 and up stand for the other bytes in order (Radford et al.
    2019, GPT-2, ``encoder.py``, ``bytes_to_unicode``).
    """
    if not _BYTES:
        own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = (byte for byte in range(256) if byte not in own)
        _BYTES.update({chr(byte): byte for byte in own})
        _BYTES.update({chr(0x100 + n): byte for n, byte in enumerate(others)})
    return _BYTES


class _Decoder:
    def begun(self, data: bytes) -> bool:
        return True


class ByteLevelDecoder(_Decoder):
    """Pieces in the byte alphabet; the pieces of the ids in ``verbatim`` (added tokens) are plain text."""

    def __init__(self, tokens: Sequence[str], verbatim: Collection[int]) -> None:
        self._tokens, self._verbatim = tokens, verbatim
        self._cache: dict[int, bytes] = {}

    def piece(self, token_id: int, first: bool) -> bytes:
        found = self._cache.get(token_id)
        if found is None:
            token, alphabet = self._tokens[token_id], byte_alphabet()
            if token_id in self._verbatim or not alphabet.keys() >= set(token):
                found = token.encode()
            else:
                found = bytes([alphabet[character] for character in token])
            self._cache[token_id] = found
        return found


class ByteFallbackDecoder(_Decoder):
    """Pieces in plain text with ``▁`` for the space; ids in ``byte_values`` stand for one byte each.

    ``strip`` drops one leading space of the whole text, which the normalizer inserted.
    """

    def __init__(
        self, tokens: Sequence[str], byte_values: dict[int, int], verbatim: Collection[int], strip: bool
    ) -> None:
        self._tokens, self._bytes, self._verbatim, self._strip = tokens, byte_values, verbatim, strip

    def piece(self, token_id: int, first: bool) -> bytes:
        value = self._bytes.get(token_id)
        if value is not None:
            return bytes([value])
        token = self._tokens[token_id]
        text = token if token_id in self._verbatim else token.replace(SPACE, " ")
        if first and self._strip and text.startswith(" "):
            text = text[1:]
        return text.encode()


class SentencePieceDecoder(ByteFallbackDecoder):
    """Pieces joined as SentencePiece does it.

    ``strip`` drops a leading space of the whole text, ``strip_all`` those of all pieces until there is text.
    ``surfaces`` has the ids whose text differs from their piece: the unknown token.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        byte_values: dict[int, int],
        strip: bool,
        strip_all: bool,
        surfaces: dict[int, str],
    ) -> None:
        super().__init__(tokens, byte_values, (), strip)
        self._strip_all, self._surfaces = strip_all, surfaces

    def piece(self, token_id: int, first: bool) -> bytes:
        surface = self._surfaces.get(token_id)
        return super().piece(token_id, first) if surface is None else surface.encode()

    def begun(self, data: bytes) -> bool:
        return bool(data) or not self._strip_all


class WordPieceDecoder(_Decoder):
    """Words separated by spaces, with continuations (``##ing``) appended; white space and case are lost.

    ``cleanup`` removes the space before punctuation and English contractions, piece by piece as Hugging Face
    ``tokenizers`` does it (``decoders/wordpiece.rs``).
    """

    REPLACED = (
        *((f" {mark}", mark) for mark in ".?!,"),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    )

    def __init__(self, tokens: Sequence[str], prefix: str, cleanup: bool) -> None:
        self._tokens, self._prefix, self._cleanup = tokens, prefix, cleanup
        self._cache: dict[tuple[int, bool], bytes] = {}

    def piece(self, token_id: int, first: bool) -> bytes:
        found = self._cache.get((token_id, first))
        if found is None:
            found = self._cache[token_id, first] = self._spell(self._tokens[token_id], first).encode()
        return found

    def _spell(self, text: str, first: bool) -> str:
        if not first:
            text = text[len(self._prefix) :] if text.startswith(self._prefix) else " " + text
        if self._cleanup:
            for old, new in self.REPLACED:
                text = text.replace(old, new)
        return text


class MetaspaceDecoder(_Decoder):
    """Pieces with ``space`` for the space; ``prefixed``: it is dropped from the first piece, where it was inserted."""

    def __init__(self, tokens: Sequence[str], space: str, prefixed: bool) -> None:
        self._tokens, self._space, self._prefixed = tokens, space, prefixed

    def piece(self, token_id: int, first: bool) -> bytes:
        between = "" if first and self._prefixed else " "
        return self._tokens[token_id].replace(self._space, between).encode()


class JoinDecoder(_Decoder):
    """Pieces joined by ``between``: for vocabularies of words, which do not record the text between them."""

    def __init__(self, tokens: Sequence[str], between: str) -> None:
        self._tokens, self._between = tokens, between

    def piece(self, token_id: int, first: bool) -> bytes:
        return (("" if first else self._between) + self._tokens[token_id]).encode()


class BytesDecoder(_Decoder):
    """Ids that are bytes plus ``shift``; the pieces of ids below and above that range are plain text."""

    def __init__(self, tokens: Sequence[str], shift: int) -> None:
        self._tokens, self._shift = tokens, shift

    def piece(self, token_id: int, first: bool) -> bytes:
        value = token_id - self._shift
        return bytes([value]) if 0 <= value < 256 else self._tokens[token_id].encode()


class PieceBytes(dict[int, bytes]):
    """The bytes of each id that is not the first, as they are asked for; those of ids in ``skip`` are left out.

    Keys must be ints. Raises :class:`InvalidRequest` for an id outside the vocabulary of ``size`` ids.
    """

    def __init__(self, decoder: Decoder, size: int, skip: frozenset[int]) -> None:
        self._decoder, self._size, self._skip = decoder, size, skip

    def __missing__(self, token_id: int) -> bytes:
        skipped = checked_id(token_id, self._size) in self._skip
        found = self[token_id] = b"" if skipped else self._decoder.piece(token_id, False)
        return found

    def text(self, ids: Sequence[int]) -> str:
        """The text of all ids, what `StreamDecoder` makes of them one at a time."""
        whole = list(ids)
        if not set(map(type, whole)) <= {int}:
            whole = [checked_id(token_id, self._size) for token_id in whole]
        parts, count = list[bytes](), 0
        for token_id in whole:
            count += 1
            if checked_id(token_id, self._size) not in self._skip:
                parts.append(self._decoder.piece(token_id, True))
                if self._decoder.begun(parts[-1]):
                    break
        return b"".join([*parts, *map(self.__getitem__, whole[count:])]).decode("utf-8", "replace")


class StreamDecoder:
    """Turns ids into text one at a time. Created by ``Tokenizer.stream``, for one sequence."""

    def __init__(self, decoder: Decoder, size: int, skip: frozenset[int]) -> None:
        self._decoder, self._size, self._skip = decoder, size, skip
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, token_id: int) -> str:
        """The text that the id completes. Raises :class:`InvalidRequest` for an id outside the vocabulary."""
        token_id = checked_id(token_id, self._size)
        if token_id in self._skip:
            return ""
        data = self._decoder.piece(token_id, self._first)
        self._first = self._first and not self._decoder.begun(data)
        text = self._utf8.decode(data)
        held, _ = self._utf8.getstate()
        if len(held) == 2 and held[0] == 0xED and held[1] >= 0xA0:
            # The start of a surrogate: never valid UTF-8, but Python's decoder would wait for the third byte.
            self._utf8.reset()
            text += "\ufffd\ufffd"
        return text

    def flush(self) -> str:
        """The rest of the text: U+FFFD if the last character is incomplete. It resets the stream."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._first = True
        return rest
