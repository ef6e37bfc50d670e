"""Copies columns of some rows of a buffer (a trace) or changes them (an edit).

trace_copy   out[i] = x[rows[i], first : first + count]
trace_edit   x[row, first : first + count] = values + factor * x[row, first : first + count]   for each entry

Threads divide x as a matrix product divides its output, so neither operation needs a barrier after a product. A factor
of 0 discards x, even if it is NaN or infinite, and a factor of 1 without values changes no bit. If the rows of x are in
the order of the experts, places[row, part] is the row of x; threads then divide only the columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import WORD, Address, Count, Record
from pellucid.kernels.matmul.product import partition

ALL = 1 << 62  # more than any number of rows
ENTRY_WORDS = 3  # words of an edit's entry: the row, the factor as a float64, the address of the values or 0


class TraceColumnsRecord(Record):
    """Fields of operations on columns of some rows of x."""

    x: Address  # (T, width) of 4 bytes each
    width: int  # columns of a row of x, a multiple of 16
    first: int  # the first column that is copied or changed
    count: int  # number of columns that are copied or changed
    places: Address  # (T, parts) int32, or 0
    place_stride: int  # bytes from one row of places to the next
    part: int
    of: Count  # T


class TraceCopyRecord(TraceColumnsRecord):
    rows: Address  # (1 + n,) int64: n, then the rows
    out: Address  # (n, count), of the same type
    out_stride: int  # bytes from one row to the next


class TraceEditRecord(TraceColumnsRecord):
    """``x`` is float32."""

    entries: Address  # (1 + 3 n,) int64: n, then the entries; values of an entry: (count,) float32


def _parts(simd: Any) -> Any:
    """Make ``own`` and ``place``.

    ``own`` returns a thread's part of the columns first <= j < first + count, and of the rows. If rows have ``places``,
    the part is some columns of all rows. ``place`` maps a row to its row of x.
    """
    part, load_i32 = partition(simd), simd.load_i32

    @simd.jit
    def own(width, first, count, rows, places, thread, threads):
        low, high, first_row, last_row = part(width, rows if places == 0 else 1, thread, threads)
        if places != 0:
            first_row, last_row = 0, ALL
        return max(first, low), min(first + count, high), first_row, last_row

    @simd.jit
    def place(places, stride, part, row):
        return row if places == 0 else load_i32(places + row * stride + 4 * part)

    return own, place


@kernel("trace_copy", TraceCopyRecord)
def build_copy(simd: Any) -> Any:
    at, load, vload, vstore = TraceCopyRecord.at, simd.load_i64, simd.vload, simd.vstore
    load_i32, store_i32, (own, place) = simd.load_i32, simd.store_i32, _parts(simd)

    @simd.jit
    def body(record, step, thread, threads):
        x, width, first = load(record + at.x), load(record + at.width), load(record + at.first)
        rows, out, stride = load(record + at.rows), load(record + at.out), load(record + at.out_stride)
        places, place_stride = load(record + at.places), load(record + at.place_stride)
        part = load(record + at.part)
        count, height = load(record + at.count), load(step + load(record + at.of))
        begin, end, low, high = own(width, first, count, height, places, thread, threads)
        for i in range(load(rows)):
            number = load(rows + WORD * (i + 1))
            if not low <= number < high:
                continue
            source = x + place(places, place_stride, part, number) * width * 4
            to = out + i * stride - first * 4
            whole = begin + max(end - begin, 0) // 16 * 16
            for j in range(begin, whole, 16):
                vstore(to + j * 4, vload(source + j * 4))
            for j in range(whole, end):
                store_i32(to + j * 4, load_i32(source + j * 4))

    return body


@kernel("trace_edit", TraceEditRecord)
def build_edit(simd: Any) -> Any:
    at, load, load_f32, store_f32 = TraceEditRecord.at, simd.load_i64, simd.load_f32, simd.store_f32
    (own, place), zero, one = _parts(simd), np.float32(0), np.float32(1)

    @simd.jit
    def body(record, step, thread, threads):
        x, width, first = load(record + at.x), load(record + at.width), load(record + at.first)
        places, place_stride = load(record + at.places), load(record + at.place_stride)
        part = load(record + at.part)
        count, height = load(record + at.count), load(step + load(record + at.of))
        begin, end, low, high = own(width, first, count, height, places, thread, threads)
        entries = load(record + at.entries)
        for i in range(load(entries)):
            entry = entries + WORD * (1 + ENTRY_WORDS * i)
            number, values = load(entry), load(entry + 2 * WORD)
            if not low <= number < high:
                continue
            row = x + place(places, place_stride, part, number) * width * 4
            factor = np.float32(simd.load_f64(entry + WORD))
            for j in range(begin, end):
                new = zero
                if factor == one:
                    new = load_f32(row + j * 4)
                elif factor != zero:
                    new = factor * load_f32(row + j * 4)
                if values != 0 and factor == zero:
                    new = load_f32(values + (j - first) * 4)
                elif values != 0:
                    new += load_f32(values + (j - first) * 4)
                store_f32(row + j * 4, new)

    return body
