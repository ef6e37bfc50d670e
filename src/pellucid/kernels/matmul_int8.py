"""Matrix product of quantised weights with 8-bit activations: out = x Wᵀ (+ bias, or + out).

In: activation blocks (T, D/32; ``quantize.py``), packed weights (N, D). Out: (T, N) float32.

For every block of 32 columns the products are summed exactly in int32; blocks add up in float32 in ascending
order, by fused multiply-adds:

    total = fma(sum, w_scale * x_scale, total)    then, with a minimum,    total = fma(w_min, x_sum, total)

Every tile shape does this same sum in this same order, so a token's result never depends on its neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.library import kernel
from pellucid.kernels.packed import BLOCK, ROWS, VECTOR, Packed
from pellucid.kernels.quantize import block_bytes, values
from pellucid.kernels.record import Address, Count, Record

TILES = (8, 4, 2, 1)
AHEAD = 16384  # bytes


class MatmulInt8(Record):
    weights: Address  # packed, groups of 16 rows
    groups: int  # N/16, rounded up
    blocks: int  # D/32
    x: Address  # (T, D/32) activation blocks
    out: Address  # (T, out_stride) float32
    out_stride: int  # bytes
    addend: Address  # added to the product: zeros, a bias (N,), or out itself for a residual
    addend_group: int  # bytes from one group of 16 to the next
    addend_row: int  # bytes from one token to the next
    rows: Count


def reference(
    x: NDArray[Any], weights: NDArray[np.float64], addend: NDArray[Any] | float = 0.0
) -> NDArray[np.float64]:
    """The same in float64, from activation blocks (T, D/32) and decoded weights (N, D)."""
    return np.asarray(values(x) @ weights.T + addend, np.float64)


def _emit_block(
    e: Any, packed: Packed, planes: int, columns: list[Any], scales: Any, x: Any, total: Any
) -> Any:
    """One token's 32 columns: add them to ``total``, 16 lanes of rows."""
    simd = _simd()
    parts, tail = len(scales.parts), BLOCK * planes
    x_scale = e.splat(e.load(e.at(x, tail), simd.f32))
    for part, (scale, minimum) in enumerate(scales.parts):
        mine = range(part * 8 // parts, (part + 1) * 8 // parts)
        exact = _sum_plane(e, columns, mine, x, 0)
        if planes == 2:
            low = _sum_plane(e, columns, mine, x, BLOCK)
            exact = e.b.add(e.b.shl(exact, e.fill(simd.i32, 7)), low)
        if packed.zero_point:
            minus = e.load(e.at(x, tail + 8 + 4 * part), simd.i32)
            if parts == 1:
                minus = e.b.add(minus, e.load(e.at(x, tail + 12), simd.i32))
            shift = e.fill(simd.i32, packed.zero_point.bit_length() - 1)
            exact = e.b.add(exact, e.b.shl(e.splat(minus), shift))
        total = e.fma(e.b.sitofp(exact, simd.vec(simd.f32)), e.b.fmul(scale, x_scale), total)
        if minimum is not None:
            total = e.fma(minimum, e.splat(e.load(e.at(x, tail + 4), simd.f32)), total)
    return total


def _sum_plane(e: Any, columns: list[Any], which: range, x: Any, offset: int) -> Any:
    """The exact sum of the products of some of a block's vectors with one plane of activations."""
    simd = _simd()
    chains = [e.fill(simd.i32, 0) for _ in range(2)]  # two chains: half the latency, the same sum
    for i in which:
        four = e.splat(e.load(e.at(x, offset + 4 * i), simd.i32))
        chains[i % 2] = e.dot_u8_i8(chains[i % 2], columns[i], four)
    return e.b.add(*chains)


def _prefetch(e: Any, address: Any, nbytes: int) -> None:
    """Ask for the bytes that will be read ``AHEAD`` bytes later: a lone token waits for nothing but memory."""
    for line in range(0, nbytes, VECTOR):
        e.prefetch(e.at(address, AHEAD + line))


@functools.cache
def _simd() -> Any:
    from pellucid.kernels import simd

    return simd


def _tile(simd: Any, packed: Packed, planes: int, tokens: int) -> Any:
    """One group of 16 rows times ``tokens`` tokens, over all columns."""
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    from pellucid.kernels import unpack

    per_unit = packed.unit // BLOCK

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        weights, blocks, x, x_stride, out, out_stride, addend, addend_row = args
        zero = e.fill(simd.f32, 0.0)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(tokens)]
        scales_start = e.at(weights, e.times(blocks, packed.plane_bytes))
        rows = [e.at(x, builder.mul(x_stride, e.const(token))) for token in range(tokens)]
        with cgutils.for_range(builder, builder.sdiv(blocks, e.const(per_unit))) as units:
            unit = e.at(scales_start, e.times(units.index, packed.scale_bytes))
            if tokens == 1:
                _prefetch(e, unit, packed.scale_bytes)
            factors = unpack.unit_scales(e, packed, unit)
            first = e.times(units.index, per_unit)
            with cgutils.for_range(builder, e.const(per_unit)) as inner:
                block = e.at(first, inner.index)
                here = e.at(weights, e.times(block, packed.plane_bytes))
                if tokens == 1:
                    _prefetch(e, here, packed.plane_bytes)
                columns = unpack.planes(e, packed, here)
                scales = unpack.block_scales(e, packed, unit, factors, inner.index)
                offset = e.times(block, block_bytes(planes))
                for total, row in zip(totals, rows):
                    now = _emit_block(
                        e, packed, planes, columns, scales, e.at(row, offset), builder.load(total)
                    )
                    builder.store(now, total)
        for token, total in enumerate(totals):
            more = e.load(e.at(addend, builder.mul(addend_row, e.const(token))), zero.type)
            where = e.at(out, builder.mul(out_stride, e.const(token)))
            e.store(builder.fadd(builder.load(total), more), where)
        return context.get_dummy_value()

    @intrinsic
    def tile(typingctx, weights, blocks, x, x_stride, out, out_stride, addend, addend_row):
        return t.void(*[t.int64] * 8), emit

    @simd.jit
    def run(weights, blocks, x, x_stride, out, out_stride, addend, addend_row):
        tile(weights, blocks, x, x_stride, out, out_stride, addend, addend_row)

    return run


@kernel("matmul_int8", MatmulInt8)
def build(simd: Any, packed: Packed, planes: int) -> Any:
    """``planes`` of the activations: 1 or 2."""
    at, load = MatmulInt8.at, simd.load_i64
    tile8, tile4, tile2, tile1 = (_tile(simd, packed, planes, tokens) for tokens in TILES)
    plane_bytes, scale_bytes, per_unit = packed.plane_bytes, packed.scale_bytes, packed.unit // BLOCK
    row_bytes, x_block = ROWS * 4, block_bytes(planes)

    @simd.jit
    def body(record, step, thread, threads):
        weights, groups, blocks = (
            load(record + at.weights),
            load(record + at.groups),
            load(record + at.blocks),
        )
        x, out, out_stride = load(record + at.x), load(record + at.out), load(record + at.out_stride)
        addend, addend_group = load(record + at.addend), load(record + at.addend_group)
        addend_row = load(record + at.addend_row)
        rows = load(step + load(record + at.rows))
        x_stride = blocks * x_block
        group_bytes = blocks * plane_bytes + (blocks // per_unit * scale_bytes + 63) // 64 * 64
        for group in range(groups * thread // threads, groups * (thread + 1) // threads):
            w, o, a = weights + group * group_bytes, out + group * row_bytes, addend + group * addend_group
            row = 0
            while row + 8 <= rows:
                tile8(w, blocks, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip
                row += 8
            if row + 4 <= rows:
                tile4(w, blocks, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip
                row += 4
            if row + 2 <= rows:
                tile2(w, blocks, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip
                row += 2
            if row < rows:
                tile1(w, blocks, x + row * x_stride, x_stride, o + row * out_stride, out_stride,
                      a + row * addend_row, addend_row)  # fmt: skip

    return body
