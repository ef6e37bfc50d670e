"""Multiplies queries by a factor that grows with the position, so that attention stays sharp in long contexts.

q *= 1 + beta log(1 + floor((position + offset) / length))       (T, H * K), in place       (Meta 2025, Llama 4)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record, StepRecord


class QueryScaleRecord(Record):
    x: Address  # (T, H * K) float32
    width: int  # H * K, a multiple of 16
    heads: int  # H: threads divide the (row, head) pairs
    beta: float
    length: int  # number of positions with the same factor
    offset: int  # added to positions


def reference(
    x: NDArray[Any], positions: NDArray[Any], beta: float, length: int, offset: int = 0
) -> NDArray[np.float64]:
    """Scale (T, N) in float64."""
    factors = 1 + beta * np.log(1 + np.floor((positions + offset) / length))
    return np.asarray(x.astype(np.float64) * factors[:, None], np.float64)


@kernel("query_scale", QueryScaleRecord)
def build(simd: Any) -> Any:
    at, step_at, load = QueryScaleRecord.at, StepRecord.at, simd.load_i64
    vload, vstore = simd.vload, simd.vstore

    @simd.jit
    def body(record, step, thread, threads):
        x, heads, width = load(record + at.x), load(record + at.heads), load(record + at.width)
        beta, length, each = simd.load_f64(record + at.beta), load(record + at.length), width // heads
        positions, offset = load(step + step_at.positions), load(record + at.offset)
        total = load(step + step_at.tokens) * heads
        for i in range(*simd.thread_range(total, thread, threads)):
            part = (simd.load_i32(positions + 4 * (i // heads)) + offset) // length
            factor = simd.splat(np.float32(1 + beta * math.log(np.float64(1 + part))))
            for j in range(i * each * 4, (i + 1) * each * 4, 64):
                vstore(x + j, vload(x + j) * factor)

    return body
