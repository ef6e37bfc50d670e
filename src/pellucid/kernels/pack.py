"""Weights into the layout of ``packed.py``, compiled. Called straight from Python, a range of groups a call.

``pack_int`` takes one byte a value, (N, D) row by row, and up to four side arrays (scales, minima, super-scales),
each (N, count) of 1 or 2 bytes. ``pack_float`` takes (N, D) of 2 or 4 bytes. N is a multiple of 16.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.packed import BLOCK, ROWS, VECTOR, Packed
from pellucid.kernels.record import Address, Record


class PackInt(Record):
    values: Address  # (N, D) uint8
    columns: int  # D
    groups: int  # N/16
    out: Address
    side0: Address  # (N, D/unit * count) of the element size; 0 where there are fewer
    side1: Address
    side2: Address
    side3: Address


class PackFloat(Record):
    values: Address  # (N, D)
    columns: int
    groups: int
    out: Address


def sides(packed: Packed) -> list[tuple[int, int]]:
    """The side arrays in the order in which a unit stores them: (elements per unit, bytes of an element)."""
    kinds = 2 if packed.minimum else 1
    small = [(packed.unit // packed.sub, 1)] * kinds if packed.super_scales else []
    return small + [(1, 2)] * kinds


@kernel("pack_int", PackInt)
def pack_int(simd: Any, packed: Packed) -> Any:
    at, load, load_u32, store_u32 = PackInt.at, simd.load_i64, simd.load_u32, simd.store_u32
    load_u8, store_u8 = simd.load_u8, simd.store_u8
    bits, plane_bytes, scale_bytes = packed.bits, packed.plane_bytes, packed.scale_bytes
    unit_columns = packed.unit
    high_bits = bits - 4
    per_plane = 8 // high_bits if high_bits else 8
    mask = (1 << high_bits) - 1
    high_mask = mask | mask << 8 | mask << 16 | mask << 24
    layout = [*sides(packed), (0, 0), (0, 0), (0, 0), (0, 0)]
    (count0, size0), (count1, size1), (count2, size2), (count3, size3) = layout[:4]

    @simd.jit
    def low_plane(row, out, stride):
        for j in range(4):
            for r in range(ROWS):
                here = row + r * stride + 8 * j
                low, high = load_u32(here) & 0x0F0F0F0F, load_u32(here + 4) & 0x0F0F0F0F
                store_u32(out + VECTOR * j + 4 * r, low | (high << 4))

    @simd.jit
    def high_plane(row, out, stride):
        for plane in range(8 // per_plane):
            for r in range(ROWS):
                packed_bits = 0
                for i in range(per_plane):
                    value = load_u32(row + r * stride + 4 * (plane * per_plane + i))
                    packed_bits |= ((value >> 4) & high_mask) << (high_bits * i)
                store_u32(out + VECTOR * plane + 4 * r, packed_bits)

    @simd.jit
    def whole(row, out, stride):
        for i in range(8):
            for r in range(ROWS):
                store_u32(out + VECTOR * i + 4 * r, load_u32(row + r * stride + 4 * i))

    @simd.jit
    def side(source, row_length, first, count, size, out):
        for i in range(count):
            for r in range(ROWS):
                for byte in range(size):
                    value = load_u8(source + (r * row_length + first + i) * size + byte)
                    store_u8(out + (i * ROWS + r) * size + byte, value)
        return out + count * ROWS * size

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        values, columns, groups = (
            load(record + at.values),
            load(record + at.columns),
            load(record + at.groups),
        )
        out = load(record + at.out)
        s0, s1 = load(record + at.side0), load(record + at.side1)
        s2, s3 = load(record + at.side2), load(record + at.side3)
        blocks, units = columns // BLOCK, columns // unit_columns
        group_bytes = blocks * plane_bytes + (units * scale_bytes + 63) // 64 * 64
        for group in range(groups):
            row, to = values + group * ROWS * columns, out + group * group_bytes
            for block in range(blocks):
                if bits == 8:
                    whole(row + BLOCK * block, to + block * plane_bytes, columns)
                else:
                    low_plane(row + BLOCK * block, to + block * plane_bytes, columns)
                    if bits > 4:
                        high_plane(row + BLOCK * block, to + block * plane_bytes + 4 * VECTOR, columns)
            to += blocks * plane_bytes
            for unit in range(units):
                first = group * ROWS * units
                to = side(s0 + first * count0 * size0, units * count0, unit * count0, count0, size0, to)
                to = side(s1 + first * count1 * size1, units * count1, unit * count1, count1, size1, to)
                to = side(s2 + first * count2 * size2, units * count2, unit * count2, count2, size2, to)
                to = side(s3 + first * count3 * size3, units * count3, unit * count3, count3, size3, to)

    return body


@kernel("pack_float", PackFloat)
def pack_float(simd: Any, size: int) -> Any:
    at, load, load_u8, store_u8 = PackFloat.at, simd.load_i64, simd.load_u8, simd.store_u8
    load_u32, store_u32 = simd.load_u32, simd.store_u32

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        values, columns, groups = (
            load(record + at.values),
            load(record + at.columns),
            load(record + at.groups),
        )
        out = load(record + at.out)
        for group in range(groups):
            row, to = values + group * ROWS * columns * size, out + group * ROWS * columns * size
            for column in range(columns):
                for r in range(ROWS):
                    here, there = row + (r * columns + column) * size, to + (column * ROWS + r) * size
                    if size == 4:
                        store_u32(there, load_u32(here))
                    else:
                        store_u8(there, load_u8(here))
                        store_u8(there + 1, load_u8(here + 1))

    return body
