"""Emits the sums of integer products: exact sums of a block, then scaled and added to a total (see ``int8.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pellucid.kernels.matmul.layouts import BLOCK, PackedLayout
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


# Emits exact int32 sums of integer products: a block of 16 weight rows times some tokens (see ``int8.py``).

CHAINS = 4  # independent partial sums of a block; the next block's sums are independent too


def as_signed(packed: PackedLayout) -> bool:
    """True if weights are used as signed bytes, which have no zero point."""
    from pellucid.kernels.simd import dot

    return packed.zero_point == 128 and dot.prefers_signed(packed.max_byte)


def exact(
    e: Any, packed: PackedLayout, planes: int, column: Callable[[int], Any], part: int, xs: list[Any]
) -> list[list[Any]]:
    """Emit a part's exact int32 sums for each token: a vector for each plane, with a lane for each of 16 rows.

    ``column(i)`` is vector i of the block's eight vectors: lane r has columns 4i to 4i+3 of row r as bytes, which are
    signed if ``as_signed`` is true. ``xs`` are the addresses of the tokens' activation blocks. The tokens are
    interleaved at every vector of weights to hide latency; integer sums do not depend on the order.
    """
    from pellucid.kernels import simd
    from pellucid.kernels.simd import dot

    per_part = 8 * packed.sub // BLOCK
    each = max(1, CHAINS * packed.sub // (BLOCK * len(xs) * planes))
    signed = as_signed(packed)

    def zero_point(plane: int, x: Any) -> Any:
        # The zero point applies to the last plane, whose unit is 1, and to the top plane of 24 bits.
        if not packed.zero_point or signed or plane not in (planes - 1, planes - 3):
            return e.fill(simd.i32, 0)
        return _zero_point(e, packed, planes, part, x, SUMS if plane == planes - 1 else TOPS)

    # A sum starts at the correction for the zero point. If sums of 16 bits fill the registers, the correction is added
    # at the end.
    late = simd.ISA.terms > 1

    def begin(plane: int, x: Any) -> Any:
        start = e.fill(simd.i32, 0) if late else zero_point(plane, x)
        return dot.Sum(e, start, packed.max_byte, signed, each)

    sums = [[begin(plane, x) for plane in range(planes)] for x in xs]
    for i in range(part * per_part, (part + 1) * per_part):
        weights = column(i)
        for token, x in zip(sums, xs):
            for plane, one in enumerate(token):
                one.add(weights, e.splat(e.load(e.at(x, BLOCK * plane + 4 * i), simd.i32)))
        # Tokens take turns after every second vector. With sums of 16 bits they take turns after every vector, because
        # a pair of vectors would take too many registers.
        if len(xs) > 1 and (i % 2 or late):
            dot.interleave(e, [one for token in sums for one in token])
    totals = []
    for token, x in zip(sums, xs):
        whole = [one.total() for one in token]
        if late:
            whole = [e.b.add(one, zero_point(plane, x)) for plane, one in enumerate(whole)]
        totals.append(whole)
    return totals


def _zero_point(e: Any, packed: PackedLayout, planes: int, part: int, x: Any, offset: int) -> Any:
    """Emit the initial value of an exact sum: minus the zero point times the sum of the part's activations."""
    from pellucid.kernels import simd

    sums, lanes = e.at(x, BLOCK * planes + offset), simd.ISA.lanes

    def in_all_lanes(at: int) -> Any:
        value = e.splat(e.load(e.at(sums, at), simd.i32), lanes)
        # LLVM would compute with a scalar and then move the result to a vector; ``together`` returns a vector.
        return e.together([value])[0] if simd.ISA.terms > 1 else value

    minus = in_all_lanes(4 * part)
    if part == 0 and packed.sub < BLOCK:  # a block stores the sums of the whole block and of its second half
        minus = e.b.sub(minus, in_all_lanes(4))
    shift = packed.zero_point.bit_length() - 1
    return e.joined([e.b.shl(minus, e.fill(simd.i32, shift, lanes))] * (simd.LANES // lanes))
