"""Emits the code that packs a block of weights: reads its values and scales in the file's layout and stores them.

``e`` is an ``Emitter``. ``matmul/file_layout.py`` and ``matmul/packed_layout.py`` describe the layouts.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from pellucid.kernels.matmul.file_layout import FileLayout
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, VECTOR, PackedLayout
from pellucid.kernels.simd.emitter import i8, i32


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
