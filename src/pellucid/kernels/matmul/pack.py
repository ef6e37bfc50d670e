"""Packs weights from their stored formats into the layout of ``matmul/layouts.py``.

Python calls these kernels directly, each call for a range of groups. ``pack_int`` reads rows of blocks as described by
``matmul/layouts.py``; ``pack_float`` reads rows of numbers of 2 or 4 bytes. Both read a multiple of 16 consecutive
rows.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, FileLayout, PackedLayout


class PackRecord(Record):
    stored: Address  # (N, D/values) blocks, or (N, D) numbers
    columns: int  # D, or the number of pairs
    groups: int  # N/16
    out: Address


@kernel("pack_int", PackRecord)
def pack_int(simd: Any, packed: PackedLayout, stored: FileLayout) -> Any:
    from pellucid.kernels.matmul.packing import store_planes, store_scale_fields, values

    assert stored.values == packed.unit, (
        f"a block has {stored.values} values; the packed layout's unit has {packed.unit}"
    )
    at, load = PackRecord.at, simd.load_i64
    unit, nbytes = packed.unit, stored.nbytes
    plane_bytes, scale_bytes = packed.plane_bytes, packed.scale_bytes
    unit_bytes = unit // BLOCK * plane_bytes

    def emit(e: Any, block: Any, planes: Any, scales: Any, row: Any) -> None:
        lane = e.at(planes, e.times(row, 4))
        for i in range(unit // BLOCK):
            store_planes(e, packed, values(e, stored, block, BLOCK * i), e.at(lane, plane_bytes * i))
        store_scale_fields(e, packed, stored, block, scales, row)

    pack_block = simd.inner_loop(4, emit)

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
                    pack_block(
                        rows + (row * units + i) * nbytes, planes + i * unit_bytes, scales + i * scale_bytes, row
                    )

    return body


@kernel("pack_float", PackRecord)
def pack_float(simd: Any, size: int) -> Any:
    at, load, load_u32, store_u32 = PackRecord.at, simd.load_i64, simd.load_u32, simd.store_u32
    each = 4 // size  # numbers in a word; a row has a multiple of 16

    @simd.jit
    def body(record, unused, unused_too, unused_three):
        values, columns = load(record + at.stored), load(record + at.columns)
        groups = load(record + at.groups)
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
