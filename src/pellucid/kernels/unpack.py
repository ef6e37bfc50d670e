"""From packed bytes to operands: the one place that knows the layout of ``packed.py`` as instructions.

Everything here emits code through an ``Emitter``; it is used by every kernel that reads weights.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from pellucid.kernels.packed import BLOCK, ROWS, VECTOR, Packed

i8, i32, f16, f32 = ir.IntType(8), ir.IntType(32), ir.HalfType(), ir.FloatType()


def vec(kind: Any) -> Any:
    return ir.VectorType(kind, ROWS)


def stored(e: Any, packed: Packed, address: Any) -> list[Any]:
    """A block's values as they are stored: vectors of packed bytes."""
    return [e.load(e.at(address, VECTOR * j), vec(i32), VECTOR) for j in range(packed.plane_bytes // VECTOR)]


def vector(e: Any, packed: Packed, raw: list[Any], i: int) -> Any:
    """One of a block's eight vectors: lane r holds row r's columns 4i..4i+3 as unsigned bytes."""
    if packed.bits == 8:
        return raw[i]
    value = raw[i // 2]
    if i % 2:
        value = e.b.lshr(value, e.fill(i32, 4))
    value = e.b.and_(value, e.fill(i32, 0x0F0F0F0F))
    high_bits = packed.bits - 4
    if not high_bits:
        return value
    per_plane = 8 // high_bits
    high, position = raw[4 + i // per_plane], high_bits * (i % per_plane)
    if position < 4:
        high = e.b.shl(high, e.fill(i32, 4 - position))
    elif position > 4:
        high = e.b.lshr(high, e.fill(i32, position - 4))
    mask = e.fill(i32, {1: 0x10101010, 2: 0x30303030}[high_bits])
    return e.b.or_(value, e.b.and_(high, mask))


def planes(e: Any, packed: Packed, address: Any) -> list[Any]:
    """All eight vectors of a block."""
    raw = stored(e, packed, address)
    return [vector(e, packed, raw, i) for i in range(8)]


def unit_scales(e: Any, packed: Packed, address: Any) -> tuple[Any, Any]:
    """The f16 factors of a unit as float32 lanes: (scale, minimum or None), before any 8-bit scales."""
    offset = 0
    if packed.super_scales:
        offset = packed.unit // packed.sub * ROWS * (2 if packed.minimum else 1)
    scale = e.widen(e.load(e.at(address, offset), vec(f16), 2), "f16")
    minimum = None
    if packed.minimum:
        minimum = e.widen(e.load(e.at(address, offset + 2 * ROWS), vec(f16), 2), "f16")
        if packed.minimum_sign < 0:
            minimum = e.b.fneg(minimum)
    return scale, minimum


def block_scales(e: Any, packed: Packed, address: Any, factors: tuple[Any, Any], block: Any) -> list[Any]:
    """Of block number ``block`` (an i64 value) of the unit at ``address``: (scale, minimum or None) of each part.

    A part is ``sub`` columns, so a block has one or two.
    """
    scale, minimum = factors
    if not packed.super_scales:
        return [(scale, minimum)]
    per_block = BLOCK // packed.sub
    parts = []
    for part in range(per_block):
        index = e.at(e.times(block, per_block * ROWS), part * ROWS)
        small = e.load(e.at(address, index), vec(i8), 1)
        widened = e.b.sext(small, vec(i32)) if packed.signed_scales else e.b.zext(small, vec(i32))
        exact = e.b.fmul(scale, e.b.sitofp(widened, vec(f32)))
        least = None
        if minimum is not None:
            mins = e.at(address, packed.unit // packed.sub * ROWS)
            small = e.load(e.at(mins, index), vec(i8), 1)
            least = e.b.fmul(minimum, e.b.uitofp(e.b.zext(small, vec(i32)), vec(f32)))
        parts.append((exact, least))
    return parts
