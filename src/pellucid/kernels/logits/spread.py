"""The number of finite logits, and the sums of x - highest and of its square over these logits, in float64.

In: logits (n,) float32, n >= 16, at most ``highest``; logits of -inf do not count. Out: (3,) float64. Called directly
from Python, which computes the mean and the standard deviation from the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record

FARTHEST = -1e300  # below x - highest for all finite float32


class SpreadRecord(Record):
    logits: Address  # (n,) float32
    count: int  # n, at least 16
    highest: float
    totals: Address  # (3,) float64


def reference(logits: NDArray[Any], highest: float) -> NDArray[np.float64]:
    """Compute the reference in NumPy."""
    x = logits[logits > -np.inf].astype(np.float64) - highest
    return np.array([len(x), x.sum(), (x * x).sum()])


@kernel("logits.spread", SpreadRecord)
def build(simd: Any) -> Any:
    at, load, load_f64, store_f64 = SpreadRecord.at, simd.load_i64, simd.load_f64, simd.store_f64
    vload, keep, widen, splat = simd.vload, simd.keep, simd.widen64, simd.splat64
    fma, vsum, select_below = simd.fma64, simd.vsum64, simd.select_below64

    @simd.jit
    def body(record, step, thread, threads):
        logits, count = load(record + at.logits), load(record + at.count)
        highest, totals = splat(load_f64(record + at.highest)), load(record + at.totals)
        far, zero, one = splat(FARTHEST), splat(0.0), splat(1.0)
        numbers, sums, squares = splat(0.0), splat(0.0), splat(0.0)
        for i in range(0, count - 15, 16):
            x = widen(vload(logits + i * 4)) - highest
            numbers = numbers + select_below(x, far, zero, one)
            x = select_below(x, far, zero, x)
            sums, squares = sums + x, fma(x, x, squares)
        rest = count & 15
        if rest != 0:  # load the last 16 logits again and keep only the new logits
            x = keep(vload(logits + (count - 16) * 4), 16 - rest, 16, np.float32(-np.inf))
            y = widen(x) - highest
            numbers = numbers + select_below(y, far, zero, one)
            y = select_below(y, far, zero, y)
            sums, squares = sums + y, fma(y, y, squares)
        store_f64(totals, vsum(numbers))
        store_f64(totals + 8, vsum(sums))
        store_f64(totals + 16, vsum(squares))

    return body
