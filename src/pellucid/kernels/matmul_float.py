"""Matrix product with weights stored as floats: out = x Wᵀ (+ bias, or + out), all in float32.

In: (T, D) float32, packed weights (N, D) in F32, F16 or BF16. Out: (T, N) float32.

Columns add up in ascending order, by fused multiply-adds, in every tile shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.library import kernel
from pellucid.kernels.packed import ROWS, Packed
from pellucid.kernels.record import Address, Count, Record

UNROLL = 4


class MatmulFloat(Record):
    weights: Address  # packed, groups of 16 rows
    groups: int  # N/16, rounded up
    columns: int  # D, a multiple of 4
    x: Address  # (T, D) float32
    x_stride: int  # bytes
    out: Address  # (T, out_stride) float32
    out_stride: int  # bytes
    addend: Address  # added to the product: zeros, a bias (N,), or out itself for a residual
    addend_group: int  # bytes from one group of 16 to the next
    addend_row: int  # bytes from one token to the next
    rows: Count


def reference(
    x: NDArray[Any], weights: NDArray[Any], addend: NDArray[Any] | float = 0.0
) -> NDArray[np.float64]:
    """The same in float64, from (T, D) and (N, D)."""
    return np.asarray(x.astype(np.float64) @ weights.astype(np.float64).T + addend, np.float64)


def _tile(simd: Any, packed: Packed, tokens: int) -> Any:
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    column_bytes = ROWS * packed.bits // 8

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        weights, columns, x, x_stride, out, out_stride, addend, addend_row = args
        totals = [cgutils.alloca_once_value(builder, e.fill(simd.f32, 0.0)) for _ in range(tokens)]
        rows = [e.at(x, builder.mul(x_stride, e.const(token))) for token in range(tokens)]
        with cgutils.for_range(builder, builder.sdiv(columns, e.const(UNROLL))) as loop:
            for i in range(UNROLL):
                column = e.at(e.times(loop.index, UNROLL), i)
                raw = e.load(
                    e.at(weights, e.times(column, column_bytes)), simd.vec(simd.STORED[packed.kind]), 32
                )
                w = e.widen(raw, packed.kind)
                for total, row in zip(totals, rows):
                    value = e.splat(e.load(e.at(row, e.times(column, 4)), simd.f32))
                    builder.store(e.fma(w, value, builder.load(total)), total)
        for token, total in enumerate(totals):
            more = e.load(e.at(addend, builder.mul(addend_row, e.const(token))), simd.vec(simd.f32))
            where = e.at(out, builder.mul(out_stride, e.const(token)))
            e.store(builder.fadd(builder.load(total), more), where)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, weights, columns, x, x_stride, out, out_stride, addend, addend_row):
        return t.void(*[t.int64] * 8), emit

    @simd.jit
    def run(weights, columns, x, x_stride, out, out_stride, addend, addend_row):
        tile(weights, columns, x, x_stride, out, out_stride, addend, addend_row)

    return run


@kernel("matmul_float", MatmulFloat)
def build(simd: Any, packed: Packed) -> Any:
    at, load = MatmulFloat.at, simd.load_i64
    tile8, tile4, tile1 = (_tile(simd, packed, tokens) for tokens in (8, 4, 1))
    column_bytes = ROWS * packed.bits // 8

    @simd.jit
    def body(record, step, thread, threads):
        weights, groups, columns = (
            load(record + at.weights),
            load(record + at.groups),
            load(record + at.columns),
        )
        x, x_stride = load(record + at.x), load(record + at.x_stride)
        out, out_stride = load(record + at.out), load(record + at.out_stride)
        addend, addend_group = load(record + at.addend), load(record + at.addend_group)
        addend_row = load(record + at.addend_row)
        rows = load(step + load(record + at.rows))
        for group in range(groups * thread // threads, groups * (thread + 1) // threads):
            w = weights + group * columns * column_bytes
            o, a = out + group * ROWS * 4, addend + group * addend_group
            row = 0
            while row + 8 <= rows:
                tile8(w, columns, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip
                row += 8
            if row + 4 <= rows:
                tile4(w, columns, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip
                row += 4
            while row < rows:
                tile1(w, columns, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip
                row += 1

    return body
