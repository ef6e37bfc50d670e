"""The integer matrix product of 8-bit weights for many tokens on 512-bit registers: pairs of groups of weight rows.

A tile is two groups of 16 weight rows times six tokens. Each activation that is loaded is multiplied with both groups,
and each vector of weights with all tokens, so loads do not limit the speed. The sums equal the sums of ``int8.py``, bit
for bit. Sums and totals of a tile take 24 of the 32 registers.
"""

from __future__ import annotations

import functools
from typing import Any

from pellucid.kernels.matmul.int8_scaled import SUMS, TOPS, add_scaled
from pellucid.kernels.matmul.packed_layout import BLOCK, VECTOR, PackedLayout
from pellucid.kernels.matmul.product import ManyTokens, by_group_tiles, prefetch_ahead
from pellucid.kernels.matmul.quantize import block_bytes

GROUPS = 2
SUMS_IN_ALL = 12  # int32 sums of a tile: groups x tokens x planes


def fits(simd: Any, packed: PackedLayout) -> bool:
    """True if the instruction set has 32 registers of 16 lanes, and weights need no unpacking."""
    return simd.ISA.vector_set == "avx512vnni" and packed.bits == 8 and packed.sub == BLOCK == packed.unit


def many_tokens(simd: Any, packed: PackedLayout, planes: int) -> ManyTokens:
    """Make the product of many tokens."""
    tokens = SUMS_IN_ALL // (GROUPS * planes)
    return by_group_tiles(simd, GROUPS, tokens, functools.partial(_sums, packed, planes), 2 * tokens)


def _sums(
    packed: PackedLayout, planes: int, e: Any, groups: list[Any], first_time: Any, columns: Any, rows: list[Any]
) -> list[list[Any]]:
    """Emit the sums of the groups of weight rows with each token: [token][group]."""
    from numba.core import cgutils

    from pellucid.kernels import simd
    from pellucid.kernels.matmul import operands

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
        sums = _exact(e, packed, planes, here, xs)
        for g, scale in enumerate(scales):
            factors = operands.block_scales(e, packed, scale, operands.unit_scales(e, packed, scale), e.const(0))
            for total, of_token, at in zip(totals, sums, xs):
                value = add_scaled(e, planes, e.b.load(total[g]), [of_token[g]], factors, at)
                e.b.store(value, total[g])
    return [[e.b.load(total) for total in of_token] for of_token in totals]


def _exact(e: Any, packed: PackedLayout, planes: int, groups: list[Any], xs: list[Any]) -> list[list[list[Any]]]:
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
