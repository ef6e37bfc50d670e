"""The weights of a distribution, exp((x - highest) * scale), and sums for its total and its entropy, in float64.

In: logits (n,) float32, n >= 16, at most ``highest``, possibly -inf. Out, float64: the weights (n,), optional; their
sum over each block of 1,024; their total sum; the sum of weight * (x - highest) * scale. The weights divided by the
total are softmax(x * scale), whose entropy is log(total) - (last sum) / total.

Called directly from Python. A block is summed in 16 lanes; the sums of blocks are added in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record

BLOCK = 1024  # logits that share a partial sum
MIN_EXPONENT = -800.0  # smallest exponent; its weight is 0


class SoftmaxRecord(Record):
    logits: Address  # (n,) float32
    count: int  # n, at least 16
    highest: float
    scale: float  # positive and finite
    weights: Address  # (n,) float64; 0: not written
    blocks: Address  # (n / BLOCK, rounded up,) float64
    totals: Address  # (2,) float64: sums of weight, and of weight * (x - highest) * scale


def reference(
    logits: NDArray[Any], highest: float, scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Compute the reference in NumPy: weights, sums of blocks, totals."""
    z = np.maximum((logits.astype(np.float64) - highest) * scale, MIN_EXPONENT)
    weights = np.where(z < -708, 0, np.exp(z))
    blocks = np.array([weights[at : at + BLOCK].sum() for at in range(0, len(z), BLOCK)])
    return weights, blocks, (float(weights.sum()), float((weights * z).sum()))


@kernel("logits.softmax", SoftmaxRecord)
def build(simd: Any) -> Any:
    at, load, load_f64, store_f64 = SoftmaxRecord.at, simd.load_i64, simd.load_f64, simd.store_f64
    vload, keep, widen, vstore = simd.vload, simd.keep, simd.widen64, simd.vstore64
    splat, fma, vexp, vsum, select_below = (
        simd.splat64, simd.fma64, simd.vexp64, simd.vsum64, simd.select_below64,
    )  # fmt: skip

    @simd.jit
    def exponents(x, highest, scale):
        """Return (x - highest) * scale, but at least MIN_EXPONENT, where the weight is 0."""
        z = (widen(x) - splat(highest)) * splat(scale)
        return select_below(z, splat(MIN_EXPONENT), splat(MIN_EXPONENT), z)

    @simd.jit
    def body(record, step, thread, threads):
        logits, count, weights = load(record + at.logits), load(record + at.count), load(record + at.weights)
        highest, scale = load_f64(record + at.highest), load_f64(record + at.scale)
        blocks, totals = load(record + at.blocks), load(record + at.totals)
        total, moment = 0.0, 0.0
        for first in range(0, count, BLOCK):
            stop = min(first + BLOCK, count)
            sums, moments = splat(0.0), splat(0.0)
            for i in range(first, stop - 15, 16):
                z = exponents(vload(logits + i * 4), highest, scale)
                w = vexp(z)
                sums, moments = sums + w, fma(w, z, moments)
                if weights != 0:
                    vstore(weights + i * 8, w)
            rest = (stop - first) & 15
            if rest != 0:  # load the last 16 logits again and keep only the new logits
                x = vload(logits + (stop - 16) * 4)
                if weights != 0:
                    vstore(weights + (stop - 16) * 8, vexp(exponents(x, highest, scale)))
                z = exponents(keep(x, 16 - rest, 16, np.float32(-np.inf)), highest, scale)
                w = vexp(z)
                sums, moments = sums + w, fma(w, z, moments)
            here = vsum(sums)
            store_f64(blocks + first // BLOCK * 8, here)
            total, moment = total + here, moment + vsum(moments)
        store_f64(totals, total)
        store_f64(totals + 8, moment)

    return body
