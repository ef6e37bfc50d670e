"""Packs weights from their stored formats into the layout of ``matmul/packed_layout.py``.

Python calls these kernels directly, each call for a range of groups. ``pack_int`` reads rows of blocks as described by
``matmul/file_layout.py``, ``pack_float`` rows of numbers of 2 or 4 bytes. Both read a multiple of 16 consecutive rows.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.matmul.file_layout import FileLayout
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, VECTOR, PackedLayout


class PackRecord(Record):
    stored: Address  # (N, D/values) blocks, or (N, D) numbers
    columns: int  # D
    groups: int  # N/16
    out: Address


i8, i32 = ir.IntType(8), ir.IntType(32)


def _number(n: int, kind: Any = i32) -> Any:
    return ir.Constant(kind, n)


def _shifted(e: Any, number: Any, by: int) -> Any:
    """Shift left by ``by`` bits, or right if ``by`` is negative."""
    if by < 0:
        return e.b.lshr(number, _number(-by, number.type))
    return e.b.shl(number, _number(by, number.type)) if by else number


def _bits(e: Any, address: Any, kind: Any, shift: int, mask: int) -> Any:
    return e.b.and_(_shifted(e, e.load(address, kind, 1), -shift), _number(mask, kind))


def _values(e: Any, stored: FileLayout, block: Any, first: int) -> list[Any]:
    """Emit 32 values of a block, from number ``first`` on, as eight i32 of four bytes each."""
    words = []
    for start in range(first, first + BLOCK, 4):
        word, below = _number(stored.flip * 0x01010101), 0
        for plane in stored.planes:
            mask = (1 << plane.bits) - 1
            if plane.run % 4 == 0:  # the four values are in consecutive bytes
                byte, shift = plane.place(start)
                four = _bits(e, e.at(block, byte), i32, shift, mask * 0x01010101)
            elif plane.run == plane.bits == 1:  # four bits of one byte: each goes to a byte of its own
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


def _store_planes(e: Any, packed: PackedLayout, words: list[Any], out: Any) -> None:
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


def _store_scale_fields(
    e: Any, packed: PackedLayout, stored: FileLayout, block: Any, out: Any, row: Any
) -> None:
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


@kernel("pack_int", PackRecord)
def pack_int(simd: Any, packed: PackedLayout, stored: FileLayout) -> Any:
    from numba.core import types as t
    from numba.extending import intrinsic

    assert stored.values == packed.unit, (
        f"a block has {stored.values} values; the packed layout's unit has {packed.unit}"
    )
    at, load = PackRecord.at, simd.load_i64
    unit, nbytes, plane_bytes, scale_bytes = (
        packed.unit,
        stored.nbytes,
        packed.plane_bytes,
        packed.scale_bytes,
    )
    unit_bytes = unit // BLOCK * plane_bytes

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        block, planes, scales, row = args
        lane = e.at(planes, e.times(row, 4))
        for i in range(unit // BLOCK):
            _store_planes(e, packed, _values(e, stored, block, BLOCK * i), e.at(lane, plane_bytes * i))
        _store_scale_fields(e, packed, stored, block, scales, row)
        return context.get_dummy_value()

    @intrinsic
    def one_block(typingctx, block, planes, scales, row):
        return t.void(t.int64, t.int64, t.int64, t.int64), emit

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        blocks, out = load(record + at.stored), load(record + at.out)
        units, groups = load(record + at.columns) // unit, load(record + at.groups)
        group_bytes = units * unit_bytes + (units * scale_bytes + 63) // 64 * 64
        for group in range(groups):
            planes, rows = out + group * group_bytes, blocks + group * ROWS * units * nbytes
            scales = planes + units * unit_bytes
            for i in range(units):
                for row in range(ROWS):
                    one_block(
                        rows + (row * units + i) * nbytes,
                        planes + i * unit_bytes,
                        scales + i * scale_bytes,
                        row,
                    )

    return body


@kernel("pack_float", PackRecord)
def pack_float(simd: Any, size: int) -> Any:
    at, load, load_u32, store_u32 = PackRecord.at, simd.load_i64, simd.load_u32, simd.store_u32
    each = 4 // size  # numbers in a word; a row has a multiple of 16

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        values, columns, groups = (
            load(record + at.stored),
            load(record + at.columns),
            load(record + at.groups),
        )
        out = load(record + at.out)
        row_bytes = columns * size
        for group in range(groups):
            rows, to = values + group * ROWS * row_bytes, out + group * ROWS * row_bytes
            for column in range(0, columns, each):
                for r in range(0, ROWS, each):
                    here, there = rows + r * row_bytes + column * size, to + (column * ROWS + r) * size
                    first = load_u32(here)
                    if size == 4:
                        store_u32(there, first)
                    else:  # two columns of two rows
                        second = load_u32(here + row_bytes)
                        store_u32(there, (first & 0xFFFF) | (second & 0xFFFF) << 16)
                        store_u32(there + ROWS * size, first >> 16 | second >> 16 << 16)

    return body
