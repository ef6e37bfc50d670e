"""The inner loops of attention: scores of a few rows, softmax of one, values of a few.

A tile takes keys and values as the cache stores them, float16, or widened to float32; both give the same bits. From
the cache they come a page at a time, and pages lie far from each other: no hardware guesses where the next one is. So a
tile asks, line by line, for what lies ``ahead`` bytes further on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.elementwise import tanh_vector

REGISTERS = 16  # vectors of sums that a tile may have
SIZE = {"f16": 2, "f32": 4}  # bytes of a number


def load16(e: Any, simd: Any, address: Any, stored: str) -> Any:
    """Sixteen stored numbers as float32."""
    return e.widen(e.load(address, simd.vec(simd.STORED[stored]), SIZE[stored]), stored)


def scores_tile(simd: Any, rows: int, page: int, stored: str) -> Any:
    """Scores of ``rows`` queries with 32 tokens: (queries, K, keys, ahead, out, bytes between its rows)."""
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        queries, width, keys, ahead, out, stride = args
        totals = [
            [cgutils.alloca_once_value(builder, e.fill(simd.f32, 0.0)) for _ in range(2)] for _ in range(rows)
        ]
        row_bytes = e.times(width, 4)
        starts = [e.at(queries, builder.mul(row_bytes, e.const(r))) for r in range(rows)]
        with cgutils.for_range(builder, width) as loop:
            key = e.at(keys, e.times(loop.index, page * SIZE[stored]))
            if stored == "f16":
                e.prefetch_stream(builder.add(key, ahead))
            halves = [load16(e, simd, e.at(key, 16 * SIZE[stored] * h), stored) for h in range(2)]
            for row, start in zip(totals, starts):
                q = e.splat(e.load(e.at(start, e.times(loop.index, 4)), simd.f32))
                for total, half in zip(row, halves):
                    builder.store(e.fma(q, half, builder.load(total)), total)
        for r, row in enumerate(totals):
            where = e.at(out, builder.mul(stride, e.const(r)))
            for h, total in enumerate(row):
                e.store(builder.load(total), e.at(where, 64 * h))
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, queries, width, keys, ahead, out, stride):
        return t.void(*[t.int64] * 6), emit

    return tile


def values_tile(simd: Any, rows: int, head_dim: int, stored: str) -> Any:
    """Add tokens' values, weighted: (weights, bytes between their rows, values, ahead, tokens, out)."""
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    vectors = head_dim // 16
    widest = REGISTERS // rows  # sums are kept in registers, so more rows take fewer columns at once
    chunk = next(c for c in (4, 3, 2, 1) if vectors % c == 0 and c <= widest)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        weights, stride, values, ahead, tokens, out = args
        starts = [e.at(weights, builder.mul(stride, e.const(r))) for r in range(rows)]
        for first in range(0, vectors, chunk):
            places = [[e.at(out, (r * vectors + first + c) * 64) for c in range(chunk)] for r in range(rows)]
            kind = simd.vec(simd.f32)
            totals = [[cgutils.alloca_once_value(builder, e.load(p, kind)) for p in row] for row in places]
            with cgutils.for_range(builder, tokens) as loop:
                value = e.at(values, e.times(loop.index, head_dim * SIZE[stored]))
                places16 = [e.at(value, (first + c) * 16 * SIZE[stored]) for c in range(chunk)]
                if stored == "f16":
                    for place in places16[::2]:  # two to a line
                        e.prefetch_stream(builder.add(place, ahead))
                loaded = [load16(e, simd, place, stored) for place in places16]
                for row, start in zip(totals, starts):
                    weight = e.splat(e.load(e.at(start, e.times(loop.index, 4)), simd.f32))
                    for total, v in zip(row, loaded):
                        builder.store(e.fma(weight, v, builder.load(total)), total)
            for row, where in zip(totals, places):
                for total, place in zip(row, where):
                    e.store(builder.load(total), place)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, weights, stride, values, ahead, tokens, out):
        return t.void(*[t.int64] * 6), emit

    return tile


def softmax_of_rows(simd: Any) -> Any:
    """Of one row of scores, in place, unnormalised; see the body for what is masked and what it tells."""
    vload, vstore, splat, vmax, vmax_lane = simd.vload, simd.vstore, simd.splat, simd.vmax, simd.vmax_lane
    keep, vexp, vsum, tanh = simd.keep, simd.vexp, simd.vsum, tanh_vector(simd)
    minus_infinity = np.float32(-np.inf)

    @simd.jit
    def softmax(scores, base, end, first, last, cap, told):
        """Tokens base <= t < end have scores; first <= t < last are seen, the rest gets weight 0.

        The largest score and the sum of the weights go to ``told``: minus infinity and 0 if no token is seen.
        """
        top = splat(minus_infinity)
        for t in range(base, end, 16):
            x = vload(scores + (t - base) * 4)
            if cap != np.float32(0):
                x = splat(cap) * tanh(x / splat(cap))
            if t < first or t + 16 > last:
                x = keep(x, first - t, last - t, minus_infinity)
            vstore(scores + (t - base) * 4, x)
            top = vmax(top, x)
        largest, total = vmax_lane(top), splat(0.0)
        simd.store_f32(told, largest)
        if largest == minus_infinity:
            largest = np.float32(0)
        shift = splat(largest)
        for t in range(base, end, 16):
            weight = vexp(vload(scores + (t - base) * 4) - shift)
            vstore(scores + (t - base) * 4, weight)
            total = total + weight
        simd.store_f32(told + 4, vsum(total))

    return softmax
