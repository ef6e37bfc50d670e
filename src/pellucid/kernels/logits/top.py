"""The indices of the k highest logits in descending order; equal logits are in the order of their indices.

In: logits (n,) float32 without NaN, n >= k. Out: indices (k,) int64. Called directly from Python. The kernel makes one
pass. A heap holds the best logits so far, with the worst at its root; 128 logits at a time are skipped if none exceeds
the root.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record

STRIDE = 128  # logits that are compared together


class TopRecord(Record):
    logits: Address  # (n,) float32
    count: int  # n
    k: int  # 1 to n
    places: Address  # (k,) int64: indices
    values: Address  # (k,) float32, scratch


def reference(logits: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Compute the reference in NumPy."""
    return np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))[:k]


@kernel("logits.top", TopRecord)
def build(simd: Any) -> Any:
    at, load, load_f32, vload = TopRecord.at, simd.load_i64, simd.load_f32, simd.vload
    store_i64, store_f32, vmax, vmax_lane = simd.store_i64, simd.store_f32, simd.vmax, simd.vmax_lane

    @simd.jit
    def sink(values, places, size, hole, value, place):
        """Put an entry at ``hole`` or below it, so that no parent is better than its children."""
        while True:
            child = 2 * hole + 1
            if child >= size:
                break
            x, p = load_f32(values + child * 4), load(places + child * 8)
            if child + 1 < size:
                y, q = load_f32(values + child * 4 + 4), load(places + child * 8 + 8)
                if y < x or (y == x and q > p):
                    child, x, p = child + 1, y, q
            if value < x or (value == x and place > p):
                break
            store_f32(values + hole * 4, x)
            store_i64(places + hole * 8, p)
            hole = child
        store_f32(values + hole * 4, value)
        store_i64(places + hole * 8, place)

    @simd.jit
    def consider(logits, first, stop, values, places, k):
        """Replace the root by each logit from ``first`` to ``stop`` that exceeds it."""
        for i in range(first, stop):
            x = load_f32(logits + i * 4)
            if x > load_f32(values):
                sink(values, places, k, 0, x, i)

    @simd.jit
    def body(record, step, thread, threads):
        logits, count, k = load(record + at.logits), load(record + at.count), load(record + at.k)
        places, values = load(record + at.places), load(record + at.values)
        for i in range(k):
            store_f32(values + i * 4, load_f32(logits + i * 4))
            store_i64(places + i * 8, i)
        for i in range(k // 2 - 1, -1, -1):
            sink(values, places, k, i, load_f32(values + i * 4), load(places + i * 8))
        i = k
        while i + STRIDE <= count:
            here = logits + i * 4
            best = vmax(vload(here), vload(here + 64))
            for other in range(128, STRIDE * 4, 64):
                best = vmax(best, vload(here + other))
            if vmax_lane(best) > load_f32(values):
                consider(logits, i, i + STRIDE, values, places, k)
            i += STRIDE
        consider(logits, i, count, values, places, k)
        for last in range(k - 1, 0, -1):  # heap sort: the worst logit moves to the end
            value, place = load_f32(values + last * 4), load(places + last * 8)
            store_f32(values + last * 4, load_f32(values))
            store_i64(places + last * 8, load(places))
            sink(values, places, last, 0, value, place)

    return body
