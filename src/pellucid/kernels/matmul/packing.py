"""Emits the code that packs a block of weights into the layout of ``layouts.py``, and that unpacks it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from pellucid.kernels.matmul.layouts import BLOCK, ROWS, VECTOR, FileLayout, PackedLayout
from pellucid.kernels.simd.emitter import f16, f32, i8, i32, vec

# Emits the code that packs a block of weights: reads its values and scales in the file's layout and stores them.
#
# ``e`` is an ``Emitter``. ``matmul/layouts.py`` describes the layouts.


def _number(n: int, kind: Any = i32) -> Any:
    return ir.Constant(kind, n)


def _shifted(e: Any, number: Any, by: int) -> Any:
    """Shift left by ``by`` bits, or right if ``by`` is negative."""
    if by < 0:
        return e.b.lshr(number, _number(-by, number.type))
    return e.b.shl(number, _number(by, number.type)) if by else number


def _bits(e: Any, address: Any, kind: Any, shift: int, mask: int) -> Any:
    return e.b.and_(_shifted(e, e.load(address, kind, 1), -shift), _number(mask, kind))


def values(e: Any, stored: FileLayout, block: Any, first: int) -> list[Any]:
    """Emit 32 values of a block, from value ``first`` on, as eight i32 of four bytes each."""
    words = []
    for start in range(first, first + BLOCK, 4):
        word, below = _number(stored.flip * 0x01010101), 0
        for plane in stored.planes:
            mask = (1 << plane.bits) - 1
            if plane.run % 4 == 0:  # the four values are in consecutive bytes
                byte, shift = plane.place(start)
                four = _bits(e, e.at(block, byte), i32, shift, mask * 0x01010101)
            elif plane.run == plane.bits == 1:  # four bits of one byte: each bit goes to its own byte
                byte, shift = plane.place(start)
                together = e.b.zext(_bits(e, e.at(block, byte), i8, shift, 15), i32)
                four = e.b.and_(e.b.mul(together, _number(0x00204081)), _number(0x01010101))
            else:
                four = _number(0)
                for i in range(4):
                    byte, shift = plane.place(start + i)
                    one = e.b.zext(_bits(e, e.at(block, byte), i8, shift, mask), i32)
                    four = e.b.or_(four, _shifted(e, one, 8 * i))
            word, below = e.b.xor(word, _shifted(e, four, below)), below + plane.bits
        words.append(word)
    return words


def store_planes(e: Any, packed: PackedLayout, words: list[Any], out: Any) -> None:
    """Store 32 values of one row in a block's planes. ``out`` is the address of the row's lane in the first vector."""
    at, below = 0, 0
    for bits in packed.planes:
        each, mask = 8 // bits, ((1 << bits) - 1) * 0x01010101
        for i in range(0, 8, each):
            lane = _number(0)
            for k, word in enumerate(words[i : i + each]):
                part = e.b.and_(_shifted(e, word, -below), _number(mask))
                lane = e.b.or_(lane, _shifted(e, part, bits * k))
            e.store(lane, e.at(out, at))
            at += VECTOR
        below += bits


def store_scale_fields(e: Any, packed: PackedLayout, stored: FileLayout, block: Any, out: Any, row: Any) -> None:
    """Store the scales and minima of one row in the scale unit at ``out``."""
    at = 0
    for (count, kind), field in zip(packed.scale_fields, stored.scale_fields, strict=True):
        size = int(kind[-1])
        assert len(field.numbers) == count
        for pieces in field.numbers:
            number, below = _number(-field.minus), 0
            for piece in pieces:
                part = _bits(e, e.at(block, piece.byte), i8, piece.shift, (1 << piece.bits) - 1)
                number = e.b.add(number, _shifted(e, e.b.zext(part, i32), below))
                below += piece.bits
            whole = e.b.trunc(number, ir.IntType(8 * size))
            e.store(whole, e.at(e.at(out, at), e.times(row, size)), 1)
            at += ROWS * size


# Emits the code that unpacks weights from the layout of ``matmul/layouts.py``.
#
# All kernels that read packed weights use these functions. ``e`` is an ``Emitter``.


def vector(e: Any, packed: PackedLayout, address: Any, i: int) -> Any:
    """Unpack vector i of a block's eight vectors: lane r holds columns 4i to 4i+3 of row r as unsigned bytes.

    The planes are at ``address``. Each vector loads the parts of the planes that it needs, even if another vector has
    loaded them, because planes kept in registers would spill sums on instruction sets with few registers.
    """
    value, first, below = None, 0, 0
    for bits in packed.planes:
        each = 8 // bits
        part = e.load(e.at(address, VECTOR * (first + i // each)), vec(i32), VECTOR)
        if bits < 8:
            shift = bits * (i % each) - below
            if shift:
                part = (e.b.lshr if shift > 0 else e.b.shl)(part, e.fill(i32, abs(shift)))
            part = e.b.and_(part, e.fill(i32, ((1 << bits) - 1 << below) * 0x01010101))
        value = part if value is None else e.b.or_(value, part)
        first, below = first + bits, below + bits
    return e.lookup(packed.table, value) if packed.table else value


def planes(e: Any, packed: PackedLayout, address: Any) -> list[Any]:
    """Unpack all eight vectors of a block."""
    return [vector(e, packed, address, i) for i in range(8)]


def without_zero_point(e: Any, packed: PackedLayout, value: Any) -> Any:
    """Subtract the zero point from a vector's unsigned bytes. The result is signed bytes."""
    zero, bytes_ = packed.zero_point, vec(i8, VECTOR)
    if not zero:
        return value
    signed = ir.Constant(bytes_, [zero - 256 * (zero > 127)] * VECTOR)
    return e.b.bitcast(e.b.sub(e.b.bitcast(value, bytes_), signed), vec(i32))


def unit_scales(e: Any, packed: PackedLayout, address: Any) -> tuple[Any, Any]:
    """Load a unit's own scale and minimum (or None) as float32 lanes, without any 8-bit scales."""
    factors = e.at(address, packed.factors_at)
    if packed.scale == "e8m0":
        return _power_of_two(e, e.load(factors, vec(i8), 1)), None
    scale = e.widen(e.load(factors, vec(f16), 2), "f16")
    minimum = None
    if packed.minimum:
        minimum = e.widen(e.load(e.at(factors, 2 * ROWS), vec(f16), 2), "f16")
        if packed.minimum_sign < 0:
            minimum = e.b.fneg(minimum)
    return scale, minimum


def _power_of_two(e: Any, exponent: Any) -> Any:
    """Compute 2^(e - 128) of bytes e: place e in a float32's exponent, handle the subnormal e = 0, and halve."""
    bits = e.b.shl(e.b.zext(exponent, vec(i32)), e.fill(i32, 23))
    lowest = e.fill(i32, 1 << 22)
    bits = e.b.select(e.b.icmp_signed(">", bits, lowest), bits, lowest)
    return e.b.fmul(e.b.bitcast(bits, vec(f32)), e.fill(f32, 0.5))


def block_scales(e: Any, packed: PackedLayout, address: Any, factors: tuple[Any, Any], block: Any) -> list[Any]:
    """Compute (scale, minimum or None) of each part of a block.

    ``block`` is the block's index (i64) in the unit at ``address``; ``factors`` are the ``unit_scales`` of this unit. A
    part is ``sub`` columns, so a block has one or two parts.
    """
    scale, minimum = factors
    if not packed.super_scales:
        return [(scale, minimum)]
    per_block = BLOCK // packed.sub
    parts = []
    for part in range(per_block):
        index = e.at(e.times(block, per_block * ROWS), part * ROWS)
        small = e.load(e.at(address, index), vec(i8), 1)
        small = e.b.sext(small, vec(i32)) if packed.signed_scales else e.b.zext(small, vec(i32))
        least = None
        if minimum is not None:
            if packed.joined_scales:
                low = e.b.lshr(small, e.fill(i32, 4))
                small = e.b.and_(small, e.fill(i32, 15))
            else:
                mins = e.at(address, packed.unit // packed.sub * ROWS)
                low = e.b.zext(e.load(e.at(mins, index), vec(i8), 1), vec(i32))
            least = e.b.fmul(minimum, e.b.sitofp(low, vec(f32)))
        parts.append((e.b.fmul(scale, e.b.sitofp(small, vec(f32))), least))
    return parts
