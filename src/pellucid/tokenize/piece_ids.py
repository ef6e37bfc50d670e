"""Piece → id of a large vocabulary, without a dictionary until many pieces have been looked up.

It takes 120 ms to create 262,144 strings and a dictionary of them, but a short text looks up only a hundred pieces.
Here a binary search finds the CRC-32 of a piece (RFC 1952) in the sorted CRC-32s of all pieces. The cache of parsed
vocabularies stores the sorted CRC-32s.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

# Maximum pieces with equal hashes, which are compared one by one. More are no accident: such a file is not cached.
MAX_EQUAL_HASHES = 8
# Different lookups, at 3 us each; more take longer than building a dictionary of 10^5 pieces.
MAX_LOOKUPS = 20_000
_SHIFT = 16  # hashes with the same upper bits form a group


class PieceIds(Mapping[str, int]):
    """The ids of pieces, all different. Equal to a dictionary from piece to id.

    ``cached`` are the arrays of :meth:`to_cache`; ids in ``without`` are left out.
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
        """The arrays of a vocabulary, or None if a file has too many pieces with equal hashes.

        ``hashes`` (n,) uint32 of the pieces, ascending; ``order`` (n,) int32, their ids; ``groups`` (65537,) int32,
        the start of each group of hashes with the same upper 16 bits.
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
