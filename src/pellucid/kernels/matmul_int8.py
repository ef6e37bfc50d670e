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
from pellucid.kernels.matmul import Matmul, prefetch_ahead, product
from pellucid.kernels.packed import BLOCK, Packed
from pellucid.kernels.quantize import block_bytes, values


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
    parts, tail = len(scales), BLOCK * planes
    x_scale = e.splat(e.load(e.at(x, tail), simd.f32))
    for part, (scale, minimum) in enumerate(scales):
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


@functools.cache
def _simd() -> Any:
    from pellucid.kernels import simd

    return simd


def _sums(
    packed: Packed, planes: int, e: Any, tokens: int, weights: Any, width: Any, rows: list[Any]
) -> list[Any]:
    """A group of 16 rows times each token, over all columns."""
    from numba.core import cgutils

    from pellucid.kernels import unpack

    per_unit, zero = packed.unit // BLOCK, e.fill(_simd().f32, 0.0)
    blocks = e.b.sdiv(width, e.const(BLOCK))
    totals = [cgutils.alloca_once_value(e.b, zero) for _ in range(tokens)]
    scales_start = e.at(weights, e.times(blocks, packed.plane_bytes))
    with cgutils.for_range(e.b, e.b.sdiv(blocks, e.const(per_unit))) as units:
        unit = e.at(scales_start, e.times(units.index, packed.scale_bytes))
        if tokens == 1:
            prefetch_ahead(e, unit, packed.scale_bytes)
        factors = unpack.unit_scales(e, packed, unit)
        first = e.times(units.index, per_unit)
        with cgutils.for_range(e.b, e.const(per_unit)) as inner:
            block = e.at(first, inner.index)
            here = e.at(weights, e.times(block, packed.plane_bytes))
            if tokens == 1:
                prefetch_ahead(e, here, packed.plane_bytes)
            columns = unpack.planes(e, packed, here)
            scales = unpack.block_scales(e, packed, unit, factors, inner.index)
            offset = e.times(block, block_bytes(planes))
            for total, row in zip(totals, rows):
                now = _emit_block(e, packed, planes, columns, scales, e.at(row, offset), e.b.load(total))
                e.b.store(now, total)
    return [e.b.load(total) for total in totals]


@kernel("matmul_int8", Matmul)
def build(simd: Any, packed: Packed, planes: int) -> Any:
    """``planes`` of the activations: 1 or 2."""
    return product(simd, functools.partial(_sums, packed, planes))
