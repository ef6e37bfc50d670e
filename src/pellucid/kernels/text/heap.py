"""A binary heap of (value, position) entries, the smallest first, for use in kernels.

An entry is two int64, 16 bytes. Entries are ordered by value, then by position. ``heap`` is the address of the root.
"""

from __future__ import annotations

from typing import Any


def rising(simd: Any) -> Any:
    """Make ``sift_up``, which moves an entry at the end up to its place."""
    load, store_i64 = simd.load_i64, simd.store_i64

    @simd.jit
    def sift_up(heap, at):
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

    return sift_up


def sinking(simd: Any) -> Any:
    """Make ``sift_down``, which moves an entry whose subtrees are heaps down to its place."""
    load, store_i64 = simd.load_i64, simd.store_i64

    @simd.jit
    def before(heap, a, b):
        """True if entry ``a`` is ordered before entry ``b``."""
        x, y = load(heap + a * 16), load(heap + b * 16)
        return x < y or (x == y and load(heap + a * 16 + 8) < load(heap + b * 16 + 8))

    @simd.jit
    def sift_down(heap, at, size):
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

    return sift_down


def heaping(simd: Any) -> Any:
    """Make ``order``, ``push`` and ``drop``, which build a heap, add an entry, and remove the smallest entry."""
    load, store_i64 = simd.load_i64, simd.store_i64
    sift_up, sift_down = rising(simd), sinking(simd)

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
