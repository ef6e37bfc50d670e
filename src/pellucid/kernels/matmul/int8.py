"""Matrix product of quantized weights with activation blocks: out = x Wᵀ (+ bias, or + out).

In: activation blocks (T, D/32; ``quantize.py``), packed weights (N, D). Out: (T, N) float32.

The products of a block of 32 columns are summed exactly in int32. With activations of 24 bits the top plane has its own
int32 sum, and sum = fma(2^14, sum of the top plane, sum of the other planes). Blocks are summed in float32 in ascending
order, with fused multiply-adds:

    total = fma(sum, w_scale * x_scale, total)    then, with a minimum,    total = fma(w_min, x_sum, total)

If 16 columns share a scale, a block has two sums:

    scaled = fma(sum1, w_scale1, sum0 * w_scale0)                then    total = fma(scaled, x_scale, total)

With minima, the difference of the two minima is first added to ``scaled``, for the second half of the block. Then
w_min0 times x_sum of the whole block is added to ``total``, as above:

    scaled = fma(w_min0 - w_min1, -(q16 + ... + q31), scaled)

Every tile shape computes the same sums in the same order, so a token's result never depends on its neighbours.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.matmul.int8_sums import SUMS, TOPS, add_scaled, as_signed, exact
from pellucid.kernels.matmul.packed_layout import BLOCK, VECTOR, PackedLayout
from pellucid.kernels.matmul.product import ManyTokens, MatmulRecord, TileSums, by_group_tiles, prefetch_ahead, product
from pellucid.kernels.matmul.quantize import block_bytes, values

# The integer matrix product of 8-bit weights for many tokens on 512-bit registers: pairs of groups of weight rows.
#
# A tile is two groups of 16 weight rows times six tokens. Each activation that is loaded is multiplied with both
# groups, and each vector of weights with all tokens, so loads do not limit the speed. The sums equal the sums of
# ``int8.py``, bit for bit. Sums and totals of a tile take 24 of the 32 registers.

GROUPS = 2
SUMS_IN_ALL = 12  # int32 sums of a tile: groups x tokens x planes


def pairs_fit(simd: Any, packed: PackedLayout) -> bool:
    """True if the instruction set has 32 registers of 16 lanes, and weights need no unpacking."""
    return simd.ISA.vector_set == "avx512vnni" and packed.bits == 8 and packed.sub == BLOCK == packed.unit


def pairs_of_groups(simd: Any, packed: PackedLayout, planes: int) -> ManyTokens:
    """Make the product of many tokens."""
    tokens = SUMS_IN_ALL // (GROUPS * planes)
    return by_group_tiles(simd, GROUPS, tokens, functools.partial(_pair_sums, packed, planes), 2 * tokens)


def _pair_sums(
    packed: PackedLayout, planes: int, e: Any, groups: list[Any], first_time: Any, columns: Any, rows: list[Any]
) -> list[list[Any]]:
    """Emit the sums of the groups of weight rows with each token: [token][group]."""
    from numba.core import cgutils

    from pellucid.kernels import simd
    from pellucid.kernels.matmul import unpack

    zero, blocks = e.fill(simd.f32, 0.0), e.b.sdiv(columns, e.const(BLOCK))
    totals = [[cgutils.alloca_once_value(e.b, zero) for _ in groups] for _ in rows]
    plane_bytes = packed.plane_bytes
    with cgutils.for_range(e.b, blocks) as loop:
        here = [e.at(group, e.times(loop.index, plane_bytes)) for group in groups]
        scales = [
            e.at(e.at(group, e.times(blocks, plane_bytes)), e.times(loop.index, packed.scale_bytes)) for group in groups
        ]
        for place, scale in zip(here, scales):
            prefetch_ahead(e, first_time, place, plane_bytes)
            prefetch_ahead(e, first_time, scale, packed.scale_bytes)
        offset = e.times(loop.index, block_bytes(8 * planes))
        xs = [e.at(r, offset) for r in rows]
        sums = _exact_pairs(e, packed, planes, here, xs)
        for g, scale in enumerate(scales):
            factors = unpack.block_scales(e, packed, scale, unpack.unit_scales(e, packed, scale), e.const(0))
            for total, of_token, at in zip(totals, sums, xs):
                value = add_scaled(e, planes, e.b.load(total[g]), [of_token[g]], factors, at)
                e.b.store(value, total[g])
    return [[e.b.load(total) for total in of_token] for of_token in totals]


def _exact_pairs(e: Any, packed: PackedLayout, planes: int, groups: list[Any], xs: list[Any]) -> list[list[list[Any]]]:
    """Emit the exact int32 sums of a block: [token][group][plane]."""
    from pellucid.kernels import simd
    from pellucid.kernels.simd import int8_dot

    def start(plane: int, x: Any) -> Any:
        if not packed.zero_point or plane not in (planes - 1, planes - 3):
            return e.fill(simd.i32, 0)
        at = e.at(x, BLOCK * planes + (SUMS if plane == planes - 1 else TOPS))
        shift = packed.zero_point.bit_length() - 1
        return e.b.shl(e.splat(e.load(at, simd.i32)), e.fill(simd.i32, shift))

    sums = []
    for x in xs:
        starts = [start(plane, x) for plane in range(planes)]
        sums.append([[int8_dot.Sum(e, one, packed.max_byte) for one in starts] for _ in groups])
    for i in range(BLOCK // 4):
        vectors = [e.load(e.at(group, VECTOR * i), simd.vec(simd.i32), VECTOR) for group in groups]
        for x, of_token in zip(xs, sums):
            for plane in range(planes):
                value = e.splat(e.load(e.at(x, BLOCK * plane + 4 * i), simd.i32))
                for vector, of_group in zip(vectors, of_token):
                    of_group[plane].add(vector, value)
        int8_dot.interleave(e, [one for of_token in sums for of_group in of_token for one in of_group])
    return [[[one.total() for one in of_group] for of_group in of_token] for of_token in sums]


def reference(x: NDArray[Any], weights: NDArray[np.float64], addend: NDArray[Any] | float = 0.0) -> NDArray[np.float64]:
    """Compute the product in float64 from activation blocks (T, D/32) and dequantized weights (N, D)."""
    return np.asarray(values(x) @ weights.T + addend, np.float64)


def _column(e: Any, packed: PackedLayout, weights: Any) -> Any:
    """Return a function for ``exact`` that emits vector i of the block whose planes are at ``weights``."""
    from pellucid.kernels.matmul import unpack

    signed = as_signed(packed)

    def column(i: int) -> Any:
        value = unpack.vector(e, packed, weights, i)
        return unpack.without_zero_point(e, packed, value) if signed else value

    return column


def _emit_sums(
    packed: PackedLayout, planes: int, e: Any, tokens: int, weights: Any, first_time: Any, width: Any, rows: list[Any]
) -> list[Any]:
    """Emit the dot products of a group of 16 weight rows with each token over all columns."""
    from numba.core import cgutils

    from pellucid.kernels import simd
    from pellucid.kernels.matmul import unpack

    per_unit, zero = packed.unit // BLOCK, e.fill(simd.f32, 0.0)
    blocks = e.b.sdiv(width, e.const(BLOCK))
    totals = [cgutils.alloca_once_value(e.b, zero) for _ in range(tokens)]
    scales_start = e.at(weights, e.times(blocks, packed.plane_bytes))
    with cgutils.for_range(e.b, e.b.sdiv(blocks, e.const(per_unit))) as units:
        unit = e.at(scales_start, e.times(units.index, packed.scale_bytes))
        prefetch_ahead(e, first_time, unit, packed.scale_bytes)
        factors = unpack.unit_scales(e, packed, unit)
        first = e.times(units.index, per_unit)
        with cgutils.for_range(e.b, e.const(per_unit)) as inner:
            block = e.at(first, inner.index)
            here = e.at(weights, e.times(block, packed.plane_bytes))
            prefetch_ahead(e, first_time, here, packed.plane_bytes)
            offset = e.times(block, block_bytes(8 * planes))
            xs = [e.at(row, offset) for row in rows]
            column = _column(e, packed, here)
            parts = [exact(e, packed, planes, column, part, xs) for part in range(BLOCK // packed.sub)]
            scales = unpack.block_scales(e, packed, unit, factors, inner.index)
            for total, sums, x in zip(totals, zip(*parts), xs):
                e.b.store(add_scaled(e, planes, e.b.load(total), sums, scales, x), total)
    return [e.b.load(total) for total in totals]


@kernel("matmul_int8", MatmulRecord, by_row=True, product=True)
def build(simd: Any, packed: PackedLayout, activation_bits: int) -> Any:
    """Build the integer matrix product. ``activation_bits`` is 8, 16 or 24: one to three planes of bytes."""
    return product(simd, sums(packed, activation_bits))


def sums(packed: PackedLayout, activation_bits: int) -> TileSums:
    """Return the emitter of a tile's sums."""
    planes = activation_bits // 8
    return TileSums(
        functools.partial(_emit_sums, packed, planes), planes, functools.partial(_many_tokens, packed, planes)
    )


def _many_tokens(packed: PackedLayout, planes: int, simd: Any, gathered: bool) -> ManyTokens | None:
    """Return the helper for many tokens, or None if small tiles are as fast on this instruction set."""
    from pellucid.kernels.matmul import int8_tiles, many_tokens  # only to compile

    if simd.ISA.tiles and int8_tiles.fits(packed):
        return int8_tiles.many_tokens(simd, packed, planes, gathered)
    if not gathered and pairs_fit(simd, packed):
        return pairs_of_groups(simd, packed, planes)
    if simd.ISA.unpacks and many_tokens.unpacking_is_faster(packed):
        return many_tokens.on_vectors(simd, packed, planes, gathered)
    return None
