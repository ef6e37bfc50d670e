"""Matrix product with weights stored as floats: out = x Wᵀ (+ bias, or + out), computed in float32.

In: (T, D) float32, packed weights (N, D) in F32, F16 or BF16. Out: (T, N) float32.

Every tile shape sums the columns in ascending order with fused multiply-adds.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.matmul.packed_layout import ROWS, PackedLayout
from pellucid.kernels.matmul.product import MatmulRecord, TileSums, prefetch_ahead, product

UNROLL = 4  # columns of an iteration; D is a multiple of it


def reference(x: NDArray[Any], weights: NDArray[Any], addend: NDArray[Any] | float = 0.0) -> NDArray[np.float64]:
    """Compute the product in float64 from (T, D) and (N, D)."""
    return np.asarray(x.astype(np.float64) @ weights.astype(np.float64).T + addend, np.float64)


def _emit_sums(
    packed: PackedLayout, e: Any, tokens: int, weights: Any, first_time: Any, width: Any, rows: list[Any]
) -> list[Any]:
    """Emit the dot products of a group of 16 weight rows with each token over all columns."""
    from numba.core import cgutils

    from pellucid.kernels import simd

    column_bytes = ROWS * packed.bits // 8
    totals = [cgutils.alloca_once_value(e.b, e.fill(simd.f32, 0.0)) for _ in range(tokens)]
    with cgutils.for_range(e.b, e.b.sdiv(width, e.const(UNROLL))) as loop:
        first = e.times(loop.index, UNROLL)
        prefetch_ahead(e, first_time, e.at(weights, e.times(first, column_bytes)), UNROLL * column_bytes)
        for i in range(UNROLL):
            column = e.at(first, i)
            raw = e.load(e.at(weights, e.times(column, column_bytes)), simd.vec(simd.STORED[packed.kind]), 32)
            w = e.widen(raw, packed.kind)
            for total, row in zip(totals, rows):
                value = e.splat(e.load(e.at(row, e.times(column, 4)), simd.f32))
                e.b.store(e.fma(w, value, e.b.load(total)), total)
    return [e.b.load(total) for total in totals]


@kernel("matmul_float", MatmulRecord, by_row=True, product=True)
def build(simd: Any, packed: PackedLayout) -> Any:
    return product(simd, sums(packed))


def sums(packed: PackedLayout) -> TileSums:
    """Return the emitter of a tile's sums."""
    return TileSums(functools.partial(_emit_sums, packed))
