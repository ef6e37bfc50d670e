"""Matrix product of quantized weights with activation blocks: out = x Wᵀ (+ bias, or + out).

In: activation blocks (T, D/32; ``quantize.py``), packed weights (N, D). Out: (T, N) float32.

The products of a block of 32 columns are summed exactly in int32: with activations of 24 bits those of the top plane,
and those of the other planes, so that sum = fma(2^14, sum of the top plane, sum of the others). Blocks are summed in
float32 in ascending order, with fused multiply-adds:

    total = fma(sum, w_scale * x_scale, total)    then, with a minimum,    total = fma(w_min, x_sum, total)

If 16 columns share a scale, a block has two sums:

    scaled = fma(sum1, w_scale1, sum0 * w_scale0)                then    total = fma(scaled, x_scale, total)

With minima, the second half's difference is added first, then w_min0 times the whole block's x_sum as above:

    scaled = fma(w_min0 - w_min1, -(q16 + ... + q31), scaled)

Every tile shape computes the same sums in the same order, so a token's result never depends on its neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.matmul import int8_tiles, operands
from pellucid.kernels.matmul.int8_scaled import SUMS, TOPS, add_scaled
from pellucid.kernels.matmul.packed_layout import BLOCK, PackedLayout
from pellucid.kernels.matmul.product import MatmulRecord, TileSums, prefetch_ahead, product
from pellucid.kernels.matmul.quantize import block_bytes, values


def reference(
    x: NDArray[Any], weights: NDArray[np.float64], addend: NDArray[Any] | float = 0.0
) -> NDArray[np.float64]:
    """Compute the product in float64 from activation blocks (T, D/32) and dequantized weights (N, D)."""
    return np.asarray(values(x) @ weights.T + addend, np.float64)


CHAINS = 4  # independent partial sums of a block; those of the next block are independent too


def _exact(
    e: Any, packed: PackedLayout, planes: int, weights: Any, part: int, xs: list[Any]
) -> list[list[Any]]:
    """Emit a part's exact int32 sum for each token, one lane for each of 16 rows: as one number, or of 24 bits as two.

    ``weights`` is the address of the block's planes, ``xs`` are those of the tokens' activation blocks. The tokens are
    interleaved at every vector of weights to hide latency; integer sums do not depend on the order.
    """
    from pellucid.kernels.simd import int8_dot

    simd = _simd()
    per_part = 8 * packed.sub // BLOCK
    each = max(1, CHAINS * packed.sub // (BLOCK * len(xs) * planes))
    # Weights that are used as signed bytes have no zero point.
    signed = packed.zero_point == 128 and int8_dot.wants_signed(packed.most)

    def zero_point(plane: int, x: Any) -> Any:
        # It applies to the top plane, and to the last plane, whose unit is 1.
        if not packed.zero_point or signed or plane not in (planes - 1, planes - 3):
            return e.fill(simd.i32, 0)
        return _zero_point(e, packed, planes, part, x, SUMS if plane == planes - 1 else TOPS)

    # The zero point is where a sum starts. Where sums of 16 bits fill the registers, it is added when they are done.
    late = simd.ISA.terms > 1

    def begin(plane: int, x: Any) -> Any:
        start = e.fill(simd.i32, 0) if late else zero_point(plane, x)
        return int8_dot.Sum(e, start, packed.most, signed, each)

    sums = [[begin(plane, x) for plane in range(planes)] for x in xs]
    for i in range(part * per_part, (part + 1) * per_part):
        column = operands.vector(e, packed, weights, i)
        if signed:
            column = e.b.xor(column, e.fill(simd.i32, int8_dot.SIGNED))
        for token, x in zip(sums, xs):
            for plane, one in enumerate(token):
                one.add(column, e.splat(e.load(e.at(x, BLOCK * plane + 4 * i), simd.i32)))
        # Products that are summed in 16 bits would wait for their pair, with too few registers.
        if len(xs) > 1 and (i % 2 or simd.ISA.terms > 1):
            int8_dot.take_turns(e, [one for token in sums for one in token])
    totals = []
    for token, x in zip(sums, xs):
        whole = [one.total() for one in token]
        if late:
            whole = [e.b.add(one, zero_point(plane, x)) for plane, one in enumerate(whole)]
        *tops, total = whole
        if tops:
            total = e.b.add(e.b.shl(tops.pop(), e.fill(simd.i32, 7)), total)
        totals.append([*tops, total])
    return totals


def _zero_point(e: Any, packed: PackedLayout, planes: int, part: int, x: Any, offset: int) -> Any:
    """Emit the initial value of an exact sum: minus the zero point times the sum of the part's activations."""
    simd = _simd()
    sums = e.at(x, BLOCK * planes + offset)
    minus = e.splat(e.load(e.at(sums, 4 * part), simd.i32))
    if part == 0 and packed.sub < BLOCK:  # stored are the sums of the whole block and of its second half
        minus = e.b.sub(minus, e.splat(e.load(e.at(sums, 4), simd.i32)))
    return e.b.shl(minus, e.fill(simd.i32, packed.zero_point.bit_length() - 1))


@functools.cache
def _simd() -> Any:
    from pellucid.kernels import simd

    return simd


def _emit_sums(
    packed: PackedLayout,
    planes: int,
    e: Any,
    tokens: int,
    weights: Any,
    first_time: Any,
    width: Any,
    rows: list[Any],
) -> list[Any]:
    """Emit the dot products of a group of 16 weight rows with each token over all columns."""
    from numba.core import cgutils

    simd = _simd()
    per_unit, zero = packed.unit // BLOCK, e.fill(simd.f32, 0.0)
    blocks = e.b.sdiv(width, e.const(BLOCK))
    totals = [cgutils.alloca_once_value(e.b, zero) for _ in range(tokens)]
    scales_start = e.at(weights, e.times(blocks, packed.plane_bytes))
    with cgutils.for_range(e.b, e.b.sdiv(blocks, e.const(per_unit))) as units:
        unit = e.at(scales_start, e.times(units.index, packed.scale_bytes))
        prefetch_ahead(e, first_time, unit, packed.scale_bytes)
        factors = operands.unit_scales(e, packed, unit)
        first = e.times(units.index, per_unit)
        with cgutils.for_range(e.b, e.const(per_unit)) as inner:
            block = e.at(first, inner.index)
            here = e.at(weights, e.times(block, packed.plane_bytes))
            prefetch_ahead(e, first_time, here, packed.plane_bytes)
            offset = e.times(block, block_bytes(8 * planes))
            xs = [e.at(row, offset) for row in rows]
            parts = [_exact(e, packed, planes, here, part, xs) for part in range(BLOCK // packed.sub)]
            scales = operands.block_scales(e, packed, unit, factors, inner.index)
            for total, sums, x in zip(totals, zip(*parts), xs):
                e.b.store(add_scaled(e, planes, e.b.load(total), sums, scales, x), total)
    return [e.b.load(total) for total in totals]


@kernel("matmul_int8", MatmulRecord)
def build(simd: Any, packed: PackedLayout, activation_bits: int) -> Any:
    """Integer matrix product; ``activation_bits`` is 8, 16 or 24: one to three planes of bytes."""
    return product(simd, sums(packed, activation_bits))


def sums(packed: PackedLayout, activation_bits: int) -> TileSums:
    """How a tile's sums are computed."""
    planes = activation_bits // 8
    tiled = functools.partial(int8_tiles.rectangle, packed, planes) if int8_tiles.fits(packed) else None
    return TileSums(functools.partial(_emit_sums, packed, planes), planes, tiled)
