"""Merges the symbols of one pre-token until no two neighbours merge: the loop of ``text/merge.py``.

``ids`` (count,) int32 are the symbols. ``values`` (count,) int64 has the value of each pair of neighbours, at the index
of the left symbol: rank << 32 | id of the merged symbol, or NEVER. The pair with the lowest value merges first, the
leftmost if values are equal. For few symbols, each step searches all values. For many symbols, a heap orders the
values.
"""

from __future__ import annotations

from typing import Any

# A binary heap of (value, position) entries, the smallest first, for use in kernels.
#
# An entry is two int64, 16 bytes. Entries are ordered by value, then by position. ``heap`` is the address of the root.


def heaping(simd: Any) -> Any:
    """Make ``order``, ``push`` and ``drop``, which build a heap, add an entry, and remove the smallest entry."""
    load, store_i64 = simd.load_i64, simd.store_i64

    @simd.jit
    def sift_up(heap, at):
        """Move an entry at the end up to its place."""
        value, position = load(heap + at * 16), load(heap + at * 16 + 8)
        while at > 0:
            parent = (at - 1) // 2
            other = load(heap + parent * 16)
            if other < value or (other == value and load(heap + parent * 16 + 8) < position):
                break
            store_i64(heap + at * 16, other)
            store_i64(heap + at * 16 + 8, load(heap + parent * 16 + 8))
            at = parent
        store_i64(heap + at * 16, value)
        store_i64(heap + at * 16 + 8, position)

    @simd.jit
    def before(heap, a, b):
        """True if entry ``a`` is ordered before entry ``b``."""
        x, y = load(heap + a * 16), load(heap + b * 16)
        return x < y or (x == y and load(heap + a * 16 + 8) < load(heap + b * 16 + 8))

    @simd.jit
    def sift_down(heap, at, size):
        """Move an entry whose subtrees are heaps down to its place."""
        value, position = load(heap + at * 16), load(heap + at * 16 + 8)
        while True:
            child = 2 * at + 1
            if child >= size:
                break
            if child + 1 < size and before(heap, child + 1, child):
                child += 1
            other = load(heap + child * 16)
            if other > value or (other == value and load(heap + child * 16 + 8) > position):
                break
            store_i64(heap + at * 16, other)
            store_i64(heap + at * 16 + 8, load(heap + child * 16 + 8))
            at = child
        store_i64(heap + at * 16, value)
        store_i64(heap + at * 16 + 8, position)

    @simd.jit
    def order(heap, size):
        """Turn ``size`` entries in any order into a heap."""
        for i in range(size // 2 - 1, -1, -1):
            sift_down(heap, i, size)

    @simd.jit
    def push(heap, size, value, position):
        """Add an entry to a heap of ``size`` entries. Returns the new size."""
        store_i64(heap + size * 16, value)
        store_i64(heap + size * 16 + 8, position)
        sift_up(heap, size)
        return size + 1

    @simd.jit
    def drop(heap, size):
        """Remove the first of ``size`` entries. Returns the new size."""
        size -= 1
        if size > 0:
            store_i64(heap, load(heap + size * 16))
            store_i64(heap + 8, load(heap + size * 16 + 8))
            sift_down(heap, 0, size)
        return size

    return order, push, drop


NEVER = (1 << 63) - 1  # the value of a pair that does not merge; greater than all others
SHORT = 64  # up to this many symbols, a search through all values is faster than a heap


def gathering(simd: Any) -> Any:
    """Make ``gather``, which copies the remaining symbols to ``out`` and returns their number."""
    load_i32, store_i32 = simd.load_i32, simd.store_i32

    @simd.jit
    def gather(ids, count, out):
        id_count = 0
        for i in range(count):
            symbol = load_i32(ids + i * 4)
            if symbol >= 0:
                store_i32(out + id_count * 4, symbol)
                id_count += 1
        return id_count

    return gather


def searching(simd: Any, value_of: Any, gather: Any) -> Any:
    """Make ``few``, which merges up to SHORT symbols. Each step searches all values for the lowest.

    ``links`` holds a doubly linked list of the remaining symbols, in uint8. The values of removed symbols are NEVER.
    """
    load, load_i32, load_u8 = simd.load_i64, simd.load_i32, simd.load_u8
    store_i32, store_i64, store_u8 = simd.store_i32, simd.store_i64, simd.store_u8

    @simd.jit
    def few(ids, count, values, links, pairs, mask, out):
        following, previous = links, links + SHORT + 8
        for i in range(count):
            store_u8(following + i, i + 1)
            store_u8(previous + i + 1, i)
        store_i64(values + (count - 1) * 8, NEVER)
        while True:
            best = NEVER
            for i in range(count):
                best = min(best, load(values + i * 8))
            if best == NEVER:
                break
            here = 0
            while load(values + here * 8) != best:
                here += 1
            removed = load_u8(following + here)
            after = load_u8(following + removed)
            store_i32(ids + here * 4, best & 0xFFFFFFFF)
            store_i32(ids + removed * 4, -1)
            store_u8(following + here, after)
            store_i64(values + removed * 8, NEVER)
            value = NEVER
            if after < count:
                store_u8(previous + after, here)
                value = value_of(best & 0xFFFFFFFF, load_i32(ids + after * 4), pairs, mask)
            store_i64(values + here * 8, value)
            if here > 0:
                before = load_u8(previous + here)
                value = value_of(load_i32(ids + before * 4), best & 0xFFFFFFFF, pairs, mask)
                store_i64(values + before * 8, value)
        return gather(ids, count, out)

    return few


def queued(simd: Any, value_of: Any, gather: Any) -> Any:
    """Make ``many``, which merges any number of symbols in the order of a heap.

    ``links`` holds a doubly linked list of the remaining symbols, in int32, followed by the heap. A symbol has at most
    one entry that is not stale. Each merge removes one entry and adds up to two, so the heap could grow to 3 * count
    entries; stale entries are removed before it exceeds 1.5 * count. An entry is a value and its index in ``values``.
    It is stale once ``values`` has another value at this index.
    """
    load, load_i32, store_i32, store_i64 = simd.load_i64, simd.load_i32, simd.store_i32, simd.store_i64
    order, push, drop = heaping(simd)

    @simd.jit
    def fill(heap, values, count):
        """Make a heap of all values except NEVER. Returns its size."""
        size = 0
        for i in range(count):
            value = load(values + i * 8)
            if value != NEVER:
                store_i64(heap + size * 16, value)
                store_i64(heap + size * 16 + 8, i)
                size += 1
        order(heap, size)
        return size

    @simd.jit
    def offer(heap, size, value, position):
        """Add an entry unless its value is NEVER. Returns the new size."""
        return size if value == NEVER else push(heap, size, value, position)

    @simd.jit
    def prune(heap, size, values):
        """Remove the stale entries. Returns the new size."""
        kept = 0
        for i in range(size):
            if load(values + load(heap + i * 16 + 8) * 8) == load(heap + i * 16):
                store_i64(heap + kept * 16, load(heap + i * 16))
                store_i64(heap + kept * 16 + 8, load(heap + i * 16 + 8))
                kept += 1
        order(heap, kept)
        return kept

    @simd.jit
    def many(ids, count, values, links, pairs, mask, out):
        following, previous, heap = links, links + count * 4, links + (count + 1) // 2 * 16
        store_i64(values + (count - 1) * 8, NEVER)
        for i in range(count):
            store_i32(following + i * 4, i + 1)
            store_i32(previous + i * 4, i - 1)
        size, capacity = fill(heap, values, count), count + count // 2
        while size > 0:
            value, here = load(heap), load(heap + 8)
            size = drop(heap, size)
            if load(values + here * 8) != value:
                continue
            removed = load_i32(following + here * 4)
            after = load_i32(following + removed * 4)
            store_i32(ids + here * 4, value & 0xFFFFFFFF)
            store_i32(ids + removed * 4, -1)
            store_i64(values + removed * 8, NEVER)
            store_i32(following + here * 4, after)
            if size + 2 > capacity:
                size = prune(heap, size, values)
            if after < count:
                store_i32(previous + after * 4, here)
                value = value_of(load_i32(ids + here * 4), load_i32(ids + after * 4), pairs, mask)
                store_i64(values + here * 8, value)
                size = offer(heap, size, value, here)
            else:
                store_i64(values + here * 8, NEVER)
            left = load_i32(previous + here * 4)
            if left >= 0:
                value = value_of(load_i32(ids + left * 4), load_i32(ids + here * 4), pairs, mask)
                store_i64(values + left * 8, value)
                size = offer(heap, size, value, left)
        return gather(ids, count, out)

    return many


def merging(simd: Any, value_of: Any) -> Any:
    """Make ``merge``, which merges symbols, writes the remaining ids to ``out`` and returns their number."""
    gather = gathering(simd)
    few, many = searching(simd, value_of, gather), queued(simd, value_of, gather)

    @simd.jit
    def merge(ids, count, values, links, pairs, mask, out):
        if count == 0:
            return 0
        if count <= SHORT:
            return few(ids, count, values, links, pairs, mask, out)
        return many(ids, count, values, links, pairs, mask, out)

    return merge
