"""Operations on the logits of one token: top-k, softmax, spread, masks. Python calls them directly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record


class MaskRecord(Record):
    """Replaces the logits of the tokens that a bit mask forbids by minus infinity.

    In: logits (n,) float32, n >= 16, and a bit for each logit in uint32 words, lowest bit first. Out: (n,) float32.
    Called directly from Python.
    """

    logits: Address  # (n,) float32
    count: int  # n, at least 16
    mask: Address  # (n / 32, rounded up,) uint32
    out: Address  # (n,) float32


def mask_reference(logits: NDArray[Any], mask: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Compute the reference in NumPy."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(logits)]
    return np.where(bits, logits, np.float32(-np.inf)).astype(np.float32)


@kernel("logits.mask", MaskRecord)
def build_mask(simd: Any) -> Any:
    at, load, vload, vstore = MaskRecord.at, simd.load_i64, simd.vload, simd.vstore
    select_bits, load_u16, load_u8, splat = simd.select_bits, simd.load_u16, simd.load_u8, simd.splat
    load_f32, store_f32 = simd.load_f32, simd.store_f32

    @simd.jit
    def body(record, step, thread, threads):
        logits, count = load(record + at.logits), load(record + at.count)
        mask, out = load(record + at.mask), load(record + at.out)
        minus_infinity = np.float32(-np.inf)
        for i in range(0, count - 15, 16):
            x = select_bits(load_u16(mask + i // 8), vload(logits + i * 4), splat(minus_infinity))
            vstore(out + i * 4, x)
        for i in range(count // 16 * 16, count):
            allowed = load_u8(mask + i // 8) >> (i & 7) & 1
            store_f32(out + i * 4, load_f32(logits + i * 4) if allowed != 0 else minus_infinity)

    return body


SOFTMAX_BLOCK = 1024  # logits that share a partial sum
MIN_EXPONENT = -800.0  # smallest exponent; its weight is 0


class SoftmaxRecord(Record):
    """The weights of a distribution, exp((x - highest) * scale), and sums for its total and its entropy, in float64.

    In: logits (n,) float32, n >= 16, at most ``highest``, possibly -inf. Out, float64: the weights (n,), optional;
    their sum over each block of 1,024; their total sum; the sum of weight * (x - highest) * scale. The weights divided
    by the total are softmax(x * scale), whose entropy is log(total) - (last sum) / total.

    Called directly from Python. A block is summed in 16 lanes; the sums of blocks are added in order.
    """

    logits: Address  # (n,) float32
    count: int  # n, at least 16
    highest: float
    scale: float  # positive and finite
    weights: Address  # (n,) float64; 0: not written
    blocks: Address  # (n / BLOCK, rounded up,) float64
    totals: Address  # (2,) float64: sums of weight, and of weight * (x - highest) * scale


def softmax_reference(
    logits: NDArray[Any], highest: float, scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[float, float]]:
    """Compute the reference in NumPy: weights, sums of blocks, totals."""
    z = np.maximum((logits.astype(np.float64) - highest) * scale, MIN_EXPONENT)
    weights = np.where(z < -708, 0, np.exp(z))
    blocks = np.array([weights[at : at + SOFTMAX_BLOCK].sum() for at in range(0, len(z), SOFTMAX_BLOCK)])
    return weights, blocks, (float(weights.sum()), float((weights * z).sum()))


@kernel("logits.softmax", SoftmaxRecord)
def build_softmax(simd: Any) -> Any:
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
        for first in range(0, count, SOFTMAX_BLOCK):
            stop = min(first + SOFTMAX_BLOCK, count)
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
            store_f64(blocks + first // SOFTMAX_BLOCK * 8, here)
            total, moment = total + here, moment + vsum(moments)
        store_f64(totals, total)
        store_f64(totals + 8, moment)

    return body


FARTHEST = -1e300  # below x - highest for all finite float32


class SpreadRecord(Record):
    """The number of finite logits, and the sums of x - highest and of its square over these logits, in float64.

    In: logits (n,) float32, n >= 16, at most ``highest``; logits of -inf do not count. Out: (3,) float64. Called
    directly from Python, which computes the mean and the standard deviation from the output.
    """

    logits: Address  # (n,) float32
    count: int  # n, at least 16
    highest: float
    totals: Address  # (3,) float64


def spread_reference(logits: NDArray[Any], highest: float) -> NDArray[np.float64]:
    """Compute the reference in NumPy."""
    x = logits[logits > -np.inf].astype(np.float64) - highest
    return np.array([len(x), x.sum(), (x * x).sum()])


@kernel("logits.spread", SpreadRecord)
def build_spread(simd: Any) -> Any:
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


TOP_STRIDE = 128  # logits that are compared together


class TopRecord(Record):
    """The indices of the k highest logits in descending order; equal logits are in the order of their indices.

    In: logits (n,) float32 without NaN, n >= k. Out: indices (k,) int64. Called directly from Python. The kernel makes
    one pass. A heap holds the best logits so far, with the worst at its root; 128 logits at a time are skipped if none
    exceeds the root.
    """

    logits: Address  # (n,) float32
    count: int  # n
    k: int  # 1 to n
    places: Address  # (k,) int64: indices
    values: Address  # (k,) float32, scratch


def top_reference(logits: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Compute the reference in NumPy."""
    return np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))[:k]


@kernel("logits.top", TopRecord)
def build_top(simd: Any) -> Any:
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
        while i + TOP_STRIDE <= count:
            here = logits + i * 4
            best = vmax(vload(here), vload(here + 64))
            for other in range(128, TOP_STRIDE * 4, 64):
                best = vmax(best, vload(here + other))
            if vmax_lane(best) > load_f32(values):
                consider(logits, i, i + TOP_STRIDE, values, places, k)
            i += TOP_STRIDE
        consider(logits, i, count, values, places, k)
        for last in range(k - 1, 0, -1):  # heap sort: the worst logit moves to the end
            value, place = load_f32(values + last * 4), load(places + last * 8)
            store_f32(values + last * 4, load_f32(values))
            store_i64(places + last * 8, load(places))
            sink(values, places, last, 0, value, place)

    return body
