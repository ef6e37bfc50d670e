"""Piece → id of a large vocabulary, without a dictionary until many pieces have been looked up.

It takes 120 ms to create 262,144 strings and a dictionary of them, but a short text looks up only a hundred pieces.
``PieceIds`` instead searches for the CRC-32 of a piece (RFC 1952) in the sorted CRC-32s of all pieces, by bisection.
The sorted CRC-32s are stored in the cache of parsed vocabularies (``parsed_cache.py``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

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
