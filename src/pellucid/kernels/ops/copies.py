"""Copies of rows: heads of other widths, and the rows of neighbouring tokens side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record, StepRecord


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
