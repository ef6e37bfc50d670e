"""Byte-pair merging: the inner loop of both BPE kinds.

In: the ids of the smallest symbols of a pre-token (bytes or characters). Out: the ids that remain when no neighbours
can be merged. The best pair always merges first; of equal pairs, the leftmost merges first (Sennrich et al. 2016,
"Neural machine translation of rare words with subword units"; Gage 1994).

A pair (left, right) is one integer, ``left * size + right``. The value of a pair is also one integer, ``rank * size +
merged id``, so that comparing two values compares the ranks. The value `NEVER` means that the pair does not merge. Two
tables compute and cache the values: :class:`PairRanks` for files that list their merges in order, :class:`ScoreRanks`
for SentencePiece files, where a pair merges if its concatenation is a piece.
"""

from __future__ import annotations

import heapq
import struct
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pellucid.tokenize.encoding import Span

if TYPE_CHECKING:
    from pellucid.tokenize.compiled.tables import PairTable

NEVER = 1 << 96
_SHORT = 96
"""Up to this many symbols, scanning a list for its minimum is faster than a heap."""

BY_RANK: Any = object()
"""Stands in place of a list of merges. It means that a pair merges if its concatenation is in the vocabulary, and that
the pair whose concatenation has the lowest id merges first."""

Column = Any
"""An indexable array of numbers: a NumPy array or a memory view."""

Log = list[tuple[int, int, int]]
"""The merges in order. Each entry has the value of the pair, the index of the first symbol of the left part, and the
index of the first symbol of the right part."""


class Ranks(dict[int, int]):
    """Values of pairs, computed on demand and cached; ``size`` is the vocabulary size."""

    LIMIT = 1 << 20
    """Maximum number of cached pairs, most of which do not merge. The cache is cleared when it is full."""

    size: int
    label = "rank"
    """The name of the number that ``rank`` returns."""

    def __missing__(self, pair: int) -> int:
        if len(self) >= self.LIMIT:
            self.clear()
        value = self[pair] = self._value(pair)
        return value

    def _value(self, pair: int) -> int:
        raise NotImplementedError

    def rank(self, value: int) -> float:
        """The rank of a value for display: the index in the merge list, or the score."""
        raise NotImplementedError

    def compiled(self) -> PairTable:
        """The table for compiled code."""
        raise NotImplementedError


class PairRanks(Ranks):
    """Values of the pairs in a merge list; the rank of a pair is its index in the list.

    ``lefts``, ``rights`` and ``merged`` (n,) int32 are ids; ``merged`` is negative for an ignored merge. The first of
    two entries for the same pair wins. ``keys`` (n,) int64 are the pairs in ascending order, ``order`` (n,) int32 their
    indices in the list; both are computed if they are not given.
    """

    def __init__(
        self,
        lefts: Column,
        rights: Column,
        merged: Column,
        size: int,
        keys: memoryview | None = None,
        order: memoryview | None = None,
    ) -> None:
        super().__init__()
        self.size, self._columns = size, (lefts, rights, merged)
        self._sorted = None if keys is None or order is None else (keys, order)

    @classmethod
    def from_cache(cls, cached: Mapping[str, memoryview], size: int) -> PairRanks:
        """The table from the arrays of :meth:`to_cache`."""
        return cls(cached["lefts"], cached["rights"], cached["merged"], size, cached["keys"], cached["order"])

    def with_last(self) -> PairRanks:
        """The same merges, but the last of two entries for a pair wins."""
        import numpy as np

        lefts, rights, merged = self._columns
        keys = np.asarray(lefts, np.int64) * self.size + np.asarray(rights)
        _, from_end = np.unique(keys[::-1], return_index=True)
        if len(from_end) == len(keys):
            return self
        last = np.sort(len(keys) - 1 - from_end)
        return PairRanks(lefts[last], rights[last], merged[last], self.size)

    def to_cache(self) -> dict[str, memoryview]:
        """The table as arrays."""
        import numpy as np

        columns = (np.asarray(column, np.int32).data for column in self._columns)
        names = ("lefts", "rights", "merged", "keys", "order")
        return dict(zip(names, (*columns, *(self._sorted or self._sort()))))

    def _value(self, pair: int) -> int:
        keys, order = self._sorted or self._sort()
        at = bisect_left(keys, pair)  # building a dictionary of half a million pairs would be slow
        if at == len(keys) or keys[at] != pair:
            return NEVER
        rank, merged = order[at], int(self._columns[2][order[at]])
        return rank * self.size + merged if merged >= 0 else NEVER

    def _sort(self) -> tuple[memoryview, memoryview]:
        import numpy as np

        lefts, rights, _ = self._columns
        keys = np.asarray(lefts, np.int64) * self.size + np.asarray(rights)
        order = np.argsort(keys, kind="stable").astype(np.int32)
        self._sorted = result = keys[order].data, order.data
        return result

    def rank(self, value: int) -> int:
        return value // self.size

    def compiled(self) -> PairTable:
        import numpy as np

        from pellucid.tokenize.compiled.tables import PairTable

        lefts, rights, merged = (np.asarray(column, np.int32) for column in self._columns)
        return PairTable(lefts, rights, merged, np.arange(len(lefts), dtype=np.int32))


class ScoreRanks(Ranks):
    """Values of pairs by the score of the piece that they form; the highest score merges first.

    Pairs rank by (score, longer left part, longer right part, id), because ``transformers`` writes the merges of a
    SentencePiece model in this order. With ``by_score_alone``, pairs rank by score only, as in SentencePiece itself,
    and the leftmost of pairs with the same score merges first. ``pieces`` has the possible results of a merge. Pairs
    whose result is in ``first`` merge before all other pairs.
    """

    label = "score"

    def __init__(
        self,
        tokens: Sequence[str],
        pieces: Mapping[str, int],
        scores: Sequence[float],
        first: frozenset[int] = frozenset(),
        by_score_alone: bool = False,
    ) -> None:
        super().__init__()
        self.size = len(tokens)
        self._tokens, self._pieces, self._scores, self._first = tokens, pieces, scores, first
        self._by_score_alone = by_score_alone

    def _value(self, pair: int) -> int:
        left_id, right_id = divmod(pair, self.size)
        left, right = self._tokens[left_id], self._tokens[right_id]
        merged = self._pieces.get(left + right)
        return NEVER if merged is None else self._rank(merged, len(left), len(right)) * self.size + merged

    def _rank(self, merged: int, left: int, right: int) -> int:
        rank = 0 if merged in self._first else 1 + _descending(self._scores[merged])
        if self._by_score_alone:
            return rank
        return ((rank << 12) + 4095 - min(left, 4095) << 12) + 4095 - min(right, 4095)

    def rank(self, value: int) -> float:
        return self._scores[value % self.size]

    def compiled(self) -> PairTable:
        import numpy as np

        from pellucid.tokenize.compiled.tables import PairTable, SpelledPieces, WordTable, splits

        lefts, rights, merged = splits(WordTable(SpelledPieces.by_id(self._pieces, self.size)))
        lengths = np.fromiter(map(len, self._tokens), np.int32, self.size)
        first = np.zeros(self.size, bool)
        first[list(self._first)] = True
        scores = np.where(first, np.inf, np.asarray(self._scores, np.float32))[merged]
        keys = [merged, -lengths[rights], -lengths[lefts]] if not self._by_score_alone else []
        order = np.lexsort([*keys, -scores])
        lefts, rights, merged, scores = lefts[order], rights[order], merged[order], scores[order]
        ranks = np.arange(len(order), dtype=np.int32)
        if self._by_score_alone:
            ranks = np.cumsum(np.append([False], scores[1:] != scores[:-1]), dtype=np.int32)[: len(order)]
        return PairTable(lefts, rights, merged, ranks)


def _descending(score: float) -> int:
    """A non-negative integer that decreases as the float32 score increases (its bits, mapped to preserve order)."""
    bits: int = struct.unpack("<i", struct.pack("<f", -score))[0]
    return bits + (1 << 31) if bits >= 0 else (1 << 31) - (bits & 0x7FFFFFFF)


def merge(ids: list[int], pairs: Ranks, log: Log | None = None) -> list[int]:
    """Merge ``ids`` until no pair merges. May change ``ids`` and return it. O(n log n) for long input."""
    if len(ids) > _SHORT:
        return _merge_long(ids, pairs, log)
    size, places = pairs.size, list(range(len(ids)))
    values = [pairs[left * size + right] for left, right in pairwise(ids)]
    while values:
        best = min(values)
        if best == NEVER:
            break
        at = values.index(best)
        if log is not None:
            log.append((best, places[at], places[at + 1]))
            del places[at + 1]
        ids[at] = best % size
        del ids[at + 1], values[at]
        if at:
            values[at - 1] = pairs[ids[at - 1] * size + ids[at]]
        if at < len(values):
            values[at] = pairs[ids[at] * size + ids[at + 1]]
    return ids


def _merge_long(ids: list[int], pairs: Ranks, log: Log | None) -> list[int]:
    """``merge`` with a heap over a linked list.

    Heap entries are ``value * n + position``; an entry is stale if ``values[position]`` has changed since.
    """
    n, size = len(ids), pairs.size
    following = list(range(1, n + 1))
    previous = list(range(-1, n - 1))
    values = [pairs[left * size + right] for left, right in pairwise(ids)]
    values.append(NEVER)
    heap = [value * n + at for at, value in enumerate(values) if value != NEVER]
    heapq.heapify(heap)
    while heap:
        value, at = divmod(heapq.heappop(heap), n)
        if values[at] != value:
            continue
        gone = following[at]
        after = following[gone]
        if log is not None:
            log.append((value, at, gone))
        ids[at], ids[gone] = value % size, -1
        values[gone] = NEVER
        following[at] = after
        if after < n:
            previous[after] = at
            values[at] = value = pairs[ids[at] * size + ids[after]]
            if value != NEVER:
                heapq.heappush(heap, value * n + at)
        else:
            values[at] = NEVER
        before = previous[at]
        if before >= 0:
            values[before] = value = pairs[ids[before] * size + ids[at]]
            if value != NEVER:
                heapq.heappush(heap, value * n + before)
    return [symbol for symbol in ids if symbol >= 0]


def merge_spans(symbols: Sequence[Span], pairs: Ranks, log: Log | None = None) -> list[Span]:
    """``merge`` for symbols with the characters that they cover."""
    log = [] if log is None else log
    ids = merge([index for index, _, _ in symbols], pairs, log)
    ends = [end for _, _, end in symbols]
    gone = set()
    for _, left, right in log:
        ends[left] = ends[right]
        gone.add(right)
    left_over = (at for at in range(len(symbols)) if at not in gone)
    return [(index, symbols[at][1], ends[at]) for index, at in zip(ids, left_over)]
