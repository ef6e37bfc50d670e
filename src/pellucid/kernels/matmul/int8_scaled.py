"""Emits the float part of integer products: exact sums of a block, scaled and added to a total (see ``int8.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pellucid.kernels.matmul.packed_layout import BLOCK
from pellucid.kernels.matmul.quantize import TOP

SUMS, TOPS = 8, 16  # offsets in bytes of a block's sums after its planes


def add_scaled(e: Any, planes: int, total: Any, sums: Sequence[Any], scales: list[Any], x: Any) -> Any:
    """Emit a token's total plus a block's scaled exact sums. ``sums`` has, for each part, a sum for each plane."""
    from pellucid.kernels import simd

    def joined(of_planes: list[Any]) -> list[Any]:
        """Return the sum of all planes; with 24 bits, the sum of the top plane and the sum of the other planes."""
        *tops, last = of_planes
        if tops:
            last = e.b.add(e.b.shl(tops.pop(), e.fill(simd.i32, 7)), last)
        return [*tops, last]

    def single(integers: list[Any]) -> Any:
        *tops, total = [e.b.sitofp(one, simd.vec(simd.f32)) for one in integers]
        return e.fma(tops[0], e.fill(simd.f32, TOP), total) if tops else total

    def of_block(offset: int, kind: Any) -> Any:
        return e.splat(e.load(e.at(x, BLOCK * planes + offset), kind))

    def second_half() -> list[Any]:
        return [of_block(offset + 4, simd.i32) for offset in ((TOPS, SUMS) if planes == 3 else (SUMS,))]

    (scale, minimum), second = scales[0], scales[1:]
    first, *rest = [single(joined(of_part)) for of_part in sums]
    if second:
        scaled = e.fma(rest[0], second[0][0], e.b.fmul(first, scale))
        if minimum is not None:
            scaled = e.fma(e.b.fsub(minimum, second[0][1]), single(second_half()), scaled)
        total = e.fma(scaled, of_block(0, simd.f32), total)
    else:
        total = e.fma(first, e.b.fmul(scale, of_block(0, simd.f32)), total)
    return total if minimum is None else e.fma(minimum, of_block(4, simd.f32), total)
