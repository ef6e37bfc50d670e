"""Matrix products with weights stored as floats: out = x Wᵀ (+ bias, or + out).

``matmul_float``: (T, D) float32, packed weights (N, D) in F32, F16 or BF16 → (T, N) float32, computed in float32. Every
tile shape sums the columns in ascending order with fused multiply-adds.

``matmul_bf16``: (T, D) as the kernel ``to_bf16`` writes them, packed weights (N, D) in pairs of bfloat16 numbers → (T,
N) float32, summed in float32 (``simd/dot.py``). Encoders use this product: their steps have many tokens, so
multiply-adds limit them, and this product needs half as many instructions as a product in float32. Every tile shape
sums the pairs in ascending order. With many tokens, a tile is two groups of 16 weight rows times eight tokens, because
fewer sums would wait for each other.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record
from pellucid.kernels.matmul.layouts import ROWS, VECTOR, PackedLayout
from pellucid.kernels.matmul.product import ManyTokens, MatmulRecord, TileSums, by_group_tiles, prefetch_ahead, product

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


BF16_UNROLL = 4  # pairs of an iteration; D is a multiple of 16, so D/2 is a multiple of it
GROUPS, TOKENS = 2, 8  # of a tile of many tokens
NAN = 0x7FC0


class ToBf16Record(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 16
    out: Address  # (T, D), at most 4 bytes each: the rows' operand of ``bf16_dot``
    rows: Count


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16, ties to even. Returns the bits, in the shape of ``values``."""
    wide = np.ascontiguousarray(values, np.float32).view(np.uint32)
    nearest = (wide + 0x7FFF + (wide >> 16 & 1)) >> 16
    nearest[np.isnan(values)] = NAN
    return nearest.astype("<u2")


def bf16_rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 to the nearest bfloat16 numbers."""
    return (bf16_bits(values).astype(np.uint32) << 16).view(np.float32)


def bf16_reference(x: NDArray[Any], weights: NDArray[Any], addend: NDArray[Any] | float = 0.0) -> NDArray[np.float64]:
    """Compute the product in float64 from (T, D) and (N, D), both rounded to bfloat16."""
    exact = bf16_rounded(x).astype(np.float64) @ bf16_rounded(weights).astype(np.float64).T
    return np.asarray(exact + addend, np.float64)


@kernel("to_bf16", ToBf16Record, by_row=True)
def build_rounding(simd: Any) -> Any:
    """Build the rounding of activations. Rows of ``out`` are 4 * D bytes apart."""
    from pellucid.kernels.simd import dot

    at, load, vload, store_row = ToBf16Record.at, simd.load_i64, simd.vload, dot.store_row
    row_bytes = dot.ROW_BYTES

    @simd.jit
    def body(record, step, thread, threads):
        x, width, out = load(record + at.x), load(record + at.width), load(record + at.out)
        first, last = simd.thread_range(load(step + load(record + at.rows)), thread, threads)
        for row in range(first, last):
            source, to = x + 4 * row * width, out + 4 * row * width
            for i in range(0, width, 16):
                store_row(to + i * row_bytes, vload(source + 4 * i))

    return body


@kernel("matmul_bf16", MatmulRecord, by_row=True, product=True)
def build_bf16(simd: Any, packed: PackedLayout) -> Any:
    return product(simd, TileSums(functools.partial(_emit_bf16_sums, packed), many=_many_tokens))


def _emit_bf16_sums(
    packed: PackedLayout, e: Any, tokens: int, weights: Any, first_time: Any, width: Any, rows: list[Any]
) -> list[Any]:
    """Emit the sums of one group of weight rows with each token."""
    return [of_token[0] for of_token in _bf16_sums(e, [weights], first_time, width, rows)]


def _bf16_sums(e: Any, groups: list[Any], first_time: Any, width: Any, rows: list[Any]) -> list[list[Any]]:
    """Emit the sums of the groups of weight rows at some addresses with each token: [token][group]."""
    from numba.core import cgutils

    from pellucid.kernels import simd
    from pellucid.kernels.simd import dot

    totals = [[cgutils.alloca_once_value(e.b, e.fill(simd.f32, 0.0)) for _ in groups] for _ in rows]
    with cgutils.for_range(e.b, e.b.sdiv(width, e.const(2 * BF16_UNROLL))) as loop:
        first = e.times(loop.index, BF16_UNROLL)
        here = [e.at(group, e.times(first, VECTOR)) for group in groups]
        for place in here:
            prefetch_ahead(e, first_time, place, BF16_UNROLL * VECTOR)
        for i in range(BF16_UNROLL):
            pairs = [e.load(e.at(place, i * VECTOR), simd.vec(simd.i32), VECTOR) for place in here]
            for half in dot.HALVES:
                numbers = [dot.half_of(e, both, half) for both in pairs]
                for row, of_token in zip(rows, totals):
                    value = dot.spread(e, row, e.at(first, i), half)
                    for total, number in zip(of_token, numbers):
                        e.b.store(dot.add(e, e.b.load(total), value, number), total)
    return [[e.b.load(total) for total in of_token] for of_token in totals]


def _many_tokens(simd: Any, gathered: bool) -> ManyTokens | None:
    """Make the product of many tokens, if the instruction set has enough registers."""
    from pellucid.kernels.simd import dot

    if gathered or not dot.NATIVE:
        return None
    return by_group_tiles(simd, GROUPS, TOKENS, _bf16_sums, TOKENS)
