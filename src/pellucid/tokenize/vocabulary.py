"""The vocabulary: the piece and the token type of each id, and the ids of pieces."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

from pellucid.errors import FileFormatError, InvalidRequest, brief
from pellucid.util.checks import is_whole

# Piece → id of a large vocabulary, without a dictionary until many pieces have been looked up. It takes 120 ms to
# create 262,144 strings and a dictionary of them, but a short text looks up only a hundred pieces. ``PieceIds`` instead
# searches for the CRC-32 of a piece (RFC 1952) in the sorted CRC-32s of all pieces, by bisection. The sorted CRC-32s
# are stored in the cache of parsed vocabularies (``parsed_cache.py``).

# Maximum number of pieces with the same hash. A lookup compares these pieces one by one. More than this number do not
# occur by chance, so the file was probably made to slow down the lookup: its vocabulary is not cached.
MAX_EQUAL_HASHES = 8
# Maximum number of different pieces that are looked up by hash, which takes 3 µs for each piece. Beyond this number the
# lookups would take longer than building a dictionary of 10^5 pieces, so the dictionary is built.
MAX_LOOKUPS = 20_000
# Hashes with equal bits above the lowest 16 form a group.
_SHIFT = 16


class PieceIds(Mapping[str, int]):
    """A mapping from piece to id. All pieces are different.

    ``cached`` has the arrays that :meth:`to_cache` returned. Ids in ``without`` are left out.
    """

    def __init__(
        self, tokens: Sequence[str], cached: Mapping[str, memoryview], without: frozenset[int] = frozenset()
    ) -> None:
        self._tokens, self._cached, self._without = tokens, cached, without
        self._hashes, self._order, self._groups = cached["hashes"], cached["order"], cached["groups"]
        self._all: dict[str, int] | None = None
        self._known: dict[str, int | None] = {}

    @staticmethod
    def to_cache(tokens: Sequence[str]) -> dict[str, memoryview] | None:
        """The arrays of a vocabulary, or None if more than ``MAX_EQUAL_HASHES`` pieces have the same hash.

        ``hashes`` (n,) uint32 has the hashes of the pieces, ascending. ``order`` (n,) int32 has the ids of the pieces
        in the order of ``hashes``. ``groups`` (65537,) int32 has the index in ``hashes`` where each group of hashes
        with the same upper 16 bits starts.
        """
        import numpy as np

        hashes = np.array([crc32(piece.encode()) for piece in tokens], np.uint32)
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        ascending = hashes[order]
        if (ascending[MAX_EQUAL_HASHES:] == ascending[:-MAX_EQUAL_HASHES]).any():
            return None
        groups = np.searchsorted(ascending >> _SHIFT, np.arange((1 << 32 - _SHIFT) + 1)).astype(np.int32)
        return {"hashes": ascending.data, "order": order.data, "groups": groups.data}

    def without(self, ids: frozenset[int]) -> PieceIds:
        """A copy without these ids."""
        return PieceIds(self._tokens, self._cached, self._without | ids)

    def get(self, piece: str, default: Any = None) -> Any:
        """The id of a piece, or the default."""
        if self._all is not None:
            return self._all.get(piece, default)
        try:
            index = self._known[piece]
        except KeyError:
            if len(self._known) >= MAX_LOOKUPS:
                return self._dictionary().get(piece, default)
            index = self._known[piece] = self._search(piece)
        return default if index is None else index

    def _search(self, piece: str) -> int | None:
        try:
            hashed = crc32(piece.encode())
        except (UnicodeEncodeError, AttributeError):  # a surrogate, or not a string
            return None
        group = hashed >> _SHIFT
        end = self._groups[group + 1]
        at = bisect_left(self._hashes, hashed, self._groups[group], end)
        while at < end and self._hashes[at] == hashed:
            index: int = self._order[at]
            if self._tokens[index] == piece:
                return None if index in self._without else index
            at += 1
        return None

    def __getitem__(self, piece: str) -> int:
        index: int | None = self.get(piece)
        if index is None:
            raise KeyError(piece)
        return index

    def __contains__(self, piece: object) -> bool:
        return isinstance(piece, str) and self.get(piece) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._dictionary())

    def __len__(self) -> int:
        return len(self._tokens) - len(self._without)

    def _dictionary(self) -> dict[str, int]:
        if self._all is None:
            pieces = dict(zip(self._tokens, range(len(self._tokens))))
            for index in self._without:
                del pieces[self._tokens[index]]
            self._all = pieces
        return self._all


class TokenType(IntEnum):
    """The type of a token, as in SentencePiece's ``ModelProto.SentencePiece.Type`` and in GGUF files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_TYPES = frozenset({TokenType.UNKNOWN, TokenType.CONTROL})
"""Types of tokens without text of their own; by default, decoded text leaves them out."""


_KNOWN = frozenset(map(int, TokenType))
_KNOWN_BYTES = bytes(_KNOWN)
_NOT_NORMAL = re.compile(b"[^%c]+" % TokenType.NORMAL)


class Vocabulary:
    """An immutable table of pieces.

    Args: ``tokens`` has one piece per id. ``types`` has a :class:`TokenType` number per id, or is None if all tokens
    are normal. ``path`` and ``field`` locate the vocabulary in error messages. The attribute ``types`` has one byte per
    id.

    Raises :class:`FileFormatError` if the table is empty, two ids share a piece, or the types are invalid.
    """

    def __init__(self, tokens: Sequence[str], types: Sequence[int] | None, path: Path, field: str) -> None:
        self.tokens: Sequence[str] = list(tokens)
        self.size = len(self.tokens)
        if not self.tokens:
            raise FileFormatError(path, field, "the vocabulary is empty")
        self.types = bytes([TokenType.NORMAL]) * self.size if types is None else _as_bytes(types, path, field)
        if len(self.types) != self.size:
            raise FileFormatError(path, field, f"{self.size:,} pieces but {len(self.types):,} token types")
        self.ids: Mapping[str, int] = distinct_ids(self.tokens, path, field)

    @classmethod
    def checked(cls, tokens: Sequence[str], types: bytes, ids: Mapping[str, int] | None = None) -> Vocabulary:
        """Build from values that have already passed the checks of the constructor."""
        vocabulary = cls.__new__(cls)
        vocabulary.tokens, vocabulary.types, vocabulary.size = tokens, types, len(tokens)
        vocabulary.ids = dict(zip(tokens, range(vocabulary.size))) if ids is None else ids
        return vocabulary

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control and unknown tokens."""
        return frozenset(self.of_type(*SPECIAL_TYPES))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Text → id of control and unknown tokens."""
        return {self.tokens[index]: index for index in sorted(self.special_ids)}

    @cached_property
    def _by_type(self) -> dict[int, list[int]]:
        """The ids of the few tokens that are not normal, by type."""
        by_type: dict[int, list[int]] = {}
        for run in _NOT_NORMAL.finditer(self.types):
            for index in range(*run.span()):
                by_type.setdefault(self.types[index], []).append(index)
        return by_type

    def of_type(self, *kinds: int) -> list[int]:
        """The ids of all tokens with a type in ``kinds``, ascending; NORMAL is not supported."""
        return sorted(index for kind in kinds for index in self._by_type.get(kind, ()))

    def ids_without(self, *kinds: int) -> Mapping[str, int]:
        """Piece → id for all tokens except tokens with a type in ``kinds``."""
        if isinstance(self.ids, PieceIds):
            return self.ids.without(frozenset(self.of_type(*kinds)))
        pieces = dict(self.ids)
        for index in self.of_type(*kinds):
            del pieces[self.tokens[index]]
        return pieces

    def byte_pieces(self, path: Path, field: str) -> dict[int, int]:
        """Id → byte of the tokens of type BYTE. Raises :class:`FileFormatError` for a token not spelled ``<0xNN>``."""
        table: dict[int, int] = {}
        for index in self.of_type(TokenType.BYTE):
            match = re.fullmatch("<0x([0-9A-F]{2})>", self.tokens[index])
            if not match:
                raise FileFormatError(path, field, f"byte token {index} is called {brief(self.tokens[index])}")
            table[index] = int(match[1], 16)
        return table

    def check(self, token_id: int) -> int:
        """Return the id. Raises :class:`InvalidRequest` if it is outside the vocabulary."""
        return checked_id(token_id, self.size)


def distinct_ids(tokens: Sequence[str], path: Path, field: str) -> dict[str, int]:
    """Piece → id. Raises :class:`FileFormatError` if two ids share a piece."""
    ids = dict(zip(tokens, range(len(tokens))))
    if len(ids) != len(tokens):
        first, token = next((at, token) for at, token in enumerate(tokens) if ids[token] != at)
        problem = f"piece {brief(token)} is listed twice, as ids {first} and {ids[token]}"
        raise FileFormatError(path, field, problem)
    return ids


def _as_bytes(types: Sequence[int], path: Path, field: str) -> bytes:
    """The types as bytes. Raises :class:`FileFormatError` if a type is not a :class:`TokenType`."""
    if isinstance(types, bytes) and not types.strip(_KNOWN_BYTES):
        return types
    if set(map(type, types)) <= {int} and _KNOWN.issuperset(types):
        return bytes(types)
    bad = next(i for i, kind in enumerate(types) if type(kind) is not int or kind not in _KNOWN)
    raise FileFormatError(path, field, f"token {bad} has unknown type {brief(types[bad])}; known: 1 to 6")


def checked_id(token_id: int, size: int) -> int:
    """An id as an int. Raises :class:`InvalidRequest` if it is not a whole number in [0, size)."""
    if type(token_id) is int and 0 <= token_id < size:
        return token_id
    if not is_whole(token_id):
        raise InvalidRequest(f"token id {brief(token_id)}: must be a whole number from 0 to {size - 1:,}")
    if not 0 <= token_id < size:
        raise InvalidRequest(f"token id {brief(int(token_id))} is outside the vocabulary; ids go from 0 to {size - 1}")
    return int(token_id)
