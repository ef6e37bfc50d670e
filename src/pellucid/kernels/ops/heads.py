"""Copies heads between rows with different head widths, because the cache stores heads in whole vectors.

In: (T, heads, K) float32. Out: (T, heads, K') float32: the values begin at an offset within each head, zeros follow.
Values before the offset do not change.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record


class HeadsRecord(Record):
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
def build(simd: Any) -> Any:
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
