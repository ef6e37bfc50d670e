"""Copies of rows and columns of buffers, for traces too, and edits of columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import WORD, Address, Count, Record, StepRecord
from pellucid.kernels.matmul.product import partition

# Copies of rows: heads of other widths, and the rows of neighbouring tokens side by side.


class HeadsRecord(Record):
    """Copies heads between rows with different head widths, because the cache stores heads in whole vectors.

    In: (T, heads, K) float32. Out: (T, heads, K') float32: the values begin at an offset within each head, zeros
    follow. Values before the offset do not change.
    """

    x: Address  # (T, heads * K) float32
    x_stride: int  # bytes from one row to the next
    width: int  # K
    out: Address  # (T, heads * K') float32
    out_stride: int  # bytes
    out_width: int  # K'
    offset: int  # number of values of each head before the copied values
    heads: int
    rows: Count


@kernel("heads", HeadsRecord)
def build_heads(simd: Any) -> Any:
    at, load, load_f32, store_f32 = HeadsRecord.at, simd.load_i64, simd.load_f32, simd.store_f32

    @simd.jit
    def body(record, step, thread, threads):
        x, x_stride, width = load(record + at.x), load(record + at.x_stride), load(record + at.width)
        out, out_stride = load(record + at.out), load(record + at.out_stride)
        out_width = load(record + at.out_width)
        heads, offset = load(record + at.heads), load(record + at.offset)
        copied = min(width, out_width - offset)
        total = load(step + load(record + at.rows)) * heads
        for i in range(*simd.thread_range(total, thread, threads)):
            row, head = i // heads, i % heads
            source = x + row * x_stride + head * width * 4
            to = out + row * out_stride + (head * out_width + offset) * 4
            for j in range(copied):
                store_f32(to + 4 * j, load_f32(source + 4 * j))
            # After the last head, the row's last vector may have columns that no other code writes.
            end = out_width if head < heads - 1 else out_stride // 4 - head * out_width
            for j in range(copied, end - offset):
                store_f32(to + 4 * j, np.float32(0))

    return body


class TokenNeighboursRecord(Record):
    """Joins the rows of neighbouring tokens, so that a convolution over tokens is a matrix product.

        out[t, J c + j] = x[t + j - (J - 1) / 2, c]

    In: (T, D) float32. Out: (T, J D) float32. Rows beyond the ends of a sequence are zeros.
    """

    x: Address  # (T, D) float32
    x_stride: int  # bytes from one row to the next
    width: int  # D
    taps: int  # J, odd
    out: Address  # (T, J * D) float32; the columns up to the next row are set to zero
    out_stride: int  # bytes


def neighbours_reference(x: NDArray[np.float32], counts: list[int], taps: int) -> NDArray[np.float32]:
    """Join the neighbours of consecutive sequences of ``counts`` rows."""
    parts, first = [], 0
    for count in counts:
        padded = np.pad(x[first : first + count], ((taps // 2, taps // 2), (0, 0)))
        parts.append(np.stack([padded[j : j + count] for j in range(taps)], -1).reshape(count, -1))
        first += count
    return np.concatenate(parts)


@kernel("neighbours", TokenNeighboursRecord)
def build_neighbours(simd: Any) -> Any:
    at, step_at, load, load_i32 = TokenNeighboursRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    load_f32, store_f32 = simd.load_f32, simd.store_f32

    @simd.jit
    def body(record, step, thread, threads):
        x, stride, width = load(record + at.x), load(record + at.x_stride), load(record + at.width)
        out, out_stride, taps = load(record + at.out), load(record + at.out_stride), load(record + at.taps)
        begin, end = simd.thread_range(load(step + step_at.tokens), thread, threads)
        for s in range(load(step + step_at.sequences)):
            first = load_i32(load(step + step_at.first_row) + 4 * s)
            last = first + load_i32(load(step + step_at.row_count) + 4 * s) - 1
            for row in range(max(begin, first), min(end, last + 1)):
                to = out + row * out_stride
                for j in range(taps):
                    source = row + j - taps // 2
                    inside = first <= source <= last
                    for c in range(width):
                        value = np.float32(0)
                        if inside:
                            value = load_f32(x + source * stride + 4 * c)
                        store_f32(to + 4 * (c * taps + j), value)
                for c in range(taps * width, out_stride // 4):
                    store_f32(to + 4 * c, np.float32(0))

    return body


# Copies columns of some rows of a buffer (a trace) or changes them (an edit).
#
# trace_copy   out[i] = x[rows[i], first : first + count]
# trace_edit   x[row, first : first + count] = values + factor * x[row, first : first + count]   for each entry
#
# Threads divide x as a matrix product divides its output, so neither operation needs a barrier after a product. A
# factor of 0 discards x, even if it is NaN or infinite, and a factor of 1 without values changes no bit. If the rows of
# x are in the order of the experts, places[row, part] is the row of x; threads then divide only the columns.

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
