"""Byte-pair merging: the inner loop of both BPE kinds.

In: the ids of the smallest symbols of a pre-token (bytes or characters). Out: the ids that are left when no
neighbours can be merged any more. Always the best pair merges first, the leftmost of equals (Sennrich et al.
2016, "Neural machine translation of rare words with subword units"; Gage 1994).

A pair (left, right) is one integer, ``left * size + right``; what it may become is one integer too,
``rank * size + merged id``, so that comparing two values compares the ranks. `NEVER` means no merge. Two
tables give these values: :class:`PairRanks` for files that list their merges in order, and
:class:`ScoreRanks` for SentencePiece files, where a pair merges if its concatenation is a piece.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.tokenize.compiled import Pairs

NEVER = 1 << 96
_SHORT = 96
"""Below this many symbols, scanning a list for its minimum beats a heap."""


class PairRanks(dict[int, int]):
    """Values of the pairs that a merge list names; the list's order is the rank.

    ``size`` is the vocabulary size. Build with :meth:`from_pairs`.
    """

    size: int

    @classmethod
    def from_pairs(
        cls,
        lefts: Sequence[str],
        rights: Sequence[str],
        ids: Mapping[str, int],
        size: int,
        forbidden: frozenset[int] = frozenset(),
    ) -> PairRanks:
        """The table of ``lefts[i] rights[i]`` in order of rank; merges into a ``forbidden`` id are left out.

        Of a pair that is listed twice, the first counts. Raises KeyError with a piece that is not in ``ids``.
        """
        # Half a million merges are not rare, so this goes column by column.
        left_ids, right_ids = map(ids.__getitem__, lefts), map(ids.__getitem__, rights)
        merged = [ids[left + right] for left, right in zip(lefts, rights)]
        keys = [left * size + right for left, right in zip(left_ids, right_ids)]
        values = list(map(add, merged, range(0, size * len(merged), size)))
        if not forbidden.isdisjoint(merged):
            kept = [at for at, index in enumerate(merged) if index not in forbidden]
            keys, values = [keys[at] for at in kept], [values[at] for at in kept]
        table = cls(zip(reversed(keys), reversed(values)))
        table.size = size
        return table

    def __missing__(self, pair: int) -> int:
        return NEVER

    def compiled(self) -> Pairs:
        """The same for compiled code."""
        import numpy as np

        from pellucid.tokenize.compiled import Pairs

        pairs, values = (np.fromiter(column, np.int64, len(self)) for column in (self.keys(), self.values()))
        order = np.argsort(values, kind="stable")
        pairs, merged = pairs[order], values[order] % self.size
        return Pairs(*(column.astype(np.int32) for column in (pairs // self.size, pairs % self.size, merged)))


class ScoreRanks(dict[int, int]):
    """Values of pairs by the score of the piece that they form, worked out when a pair is first met.

    Pairs rank by (score, longer left part, longer right part, id), which is the order in which
    ``transformers`` writes out the merges of a SentencePiece model. ``pieces`` holds what may come out of a
    merge; ``first`` are ids that merge before all others.
    """

    LIMIT = 1 << 20
    """Pairs remembered, mostly those that do not merge; then the memory starts afresh."""

    def __init__(
        self,
        tokens: Sequence[str],
        pieces: Mapping[str, int],
        scores: Sequence[float],
        first: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self.size = len(tokens)
        self._tokens, self._pieces, self._scores, self._first = tokens, pieces, scores, first

    def __missing__(self, pair: int) -> int:
        left_id, right_id = divmod(pair, self.size)
        left, right = self._tokens[left_id], self._tokens[right_id]
        merged = self._pieces.get(left + right)
        value = NEVER
        if merged is not None:
            rank = 0 if merged in self._first else 1 + _descending(self._scores[merged])
            rank = (rank << 12) + 4095 - min(len(left), 4095)
            rank = (rank << 12) + 4095 - min(len(right), 4095)
            value = rank * self.size + merged
        if len(self) >= self.LIMIT:
            self.clear()
        self[pair] = value
        return value


def _descending(score: float) -> int:
    """A non-negative integer that is smaller for a greater float32 (its bits, made to order like the number)."""
    bits: int = struct.unpack("<i", struct.pack("<f", -score))[0]
    return bits + (1 << 31) if bits >= 0 else (1 << 31) - (bits & 0x7FFFFFFF)


def merge(ids: list[int], pairs: PairRanks | ScoreRanks) -> list[int]:
    """Merge ``ids`` until nothing merges. May change and return the same list. O(n log n) for long input."""
    if len(ids) > _SHORT:
        return _merge_long(ids, pairs)
    size = pairs.size
    values = [pairs[left * size + right] for left, right in pairwise(ids)]
    while values:
        best = min(values)
        if best == NEVER:
            break
        at = values.index(best)
        ids[at] = best % size
        del ids[at + 1], values[at]
        if at:
            values[at - 1] = pairs[ids[at - 1] * size + ids[at]]
        if at < len(values):
            values[at] = pairs[ids[at] * size + ids[at + 1]]
    return ids


def _merge_long(ids: list[int], pairs: PairRanks | ScoreRanks) -> list[int]:
    """The same with a heap over a linked list. Heap entries are ``value * n + position``; an entry is stale
    when ``values[position]`` has changed since."""
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
