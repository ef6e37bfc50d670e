"""From the rows of tokens to the rows of the output: pooling, scaling to length 1.

pool       one row for each sequence, from all its rows       (T, D) -> (B, D)
normalize  x = x / |x|                                        (R, D), in place

Kinds of pooling, for the n rows of a sequence: mean; mean_sqrt, the sum divided by sqrt(n); weighted, the mean with
weight i for the i-th row (Muennighoff 2022, SGPT); max; sparse, log(1 + max(0, x)) of the largest x (Formal et al.
2021, SPLADE).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record, StepRecord

KINDS = ("mean", "mean_sqrt", "weighted", "max", "sparse")
LOG_STEPS = 8
"""Steps of Halley's iteration for log(a). Eight steps are enough for a < e^12."""


class PoolRecord(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 16
    out: Address  # (B, D) float32


class UnitLengthRecord(Record):
    x: Address  # (R, D) float32
    width: int  # D, a multiple of 16
    rows: Count


def pool_reference(x: NDArray[Any], counts: list[int], kind: str) -> NDArray[np.float64]:
    """Compute pooling in float64 for consecutive sequences of ``counts`` rows."""
    ends = np.cumsum(counts)
    return np.stack([_pooled(x[end - n : end].astype(np.float64), kind) for n, end in zip(counts, ends)])


def _pooled(rows: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    weights = np.arange(1.0, len(rows) + 1)
    kinds = {
        "mean": lambda: rows.mean(0),
        "mean_sqrt": lambda: rows.sum(0) / np.sqrt(len(rows)),
        "weighted": lambda: weights @ rows / weights.sum(),
        "max": lambda: rows.max(0),
        "sparse": lambda: np.log1p(np.maximum(rows.max(0), 0)),
    }
    return np.asarray(kinds[kind](), np.float64)


def normalize_reference(x: NDArray[Any]) -> NDArray[np.float64]:
    """Compute normalize in float64."""
    wide = x.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=-1, keepdims=True), np.float64)


@kernel("pool", PoolRecord)
def build_pool(simd: Any, kind: str) -> Any:
    """Build pooling. ``kind`` is one of KINDS."""
    at, step_at, load, load_i32 = PoolRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    vload, vstore, splat, fma, vmax, vexp = (
        simd.vload, simd.vstore, simd.splat, simd.fma, simd.vmax, simd.vexp,
    )  # fmt: skip

    @simd.jit
    def log_of(a):
        """Return log(a) for a >= 1: Halley's iteration for e^y = a."""
        y = splat(0.0)
        for _ in range(LOG_STEPS):
            power = vexp(y)
            y = y + splat(2.0) * (a - power) / (a + power)
        return y

    @simd.jit
    def pooled(x, stride, count):
        """Return the pooled value of 16 columns, from ``count`` rows with ``stride`` bytes between them."""
        total = splat(0.0)
        if kind == "max" or kind == "sparse":
            total = vload(x)
        for n in range(count):
            row = vload(x + n * stride)
            if kind == "max" or kind == "sparse":
                total = vmax(total, row)
            elif kind == "weighted":
                total = fma(row, splat(np.float32(n + 1)), total)
            else:
                total = total + row
        if kind == "mean":
            total = total * splat(np.float32(1) / np.float32(count))
        elif kind == "mean_sqrt":
            total = total * splat(np.float32(1) / np.sqrt(np.float32(count)))
        elif kind == "weighted":
            total = total * splat(np.float32(2) / (np.float32(count) * np.float32(count + 1)))
        elif kind == "sparse":
            total = log_of(splat(1.0) + vmax(total, splat(0.0)))
        return total

    @simd.jit
    def body(record, step, thread, threads):
        x, width, out = load(record + at.x), load(record + at.width), load(record + at.out)
        first_row, row_count = load(step + step_at.first_row), load(step + step_at.row_count)
        for s in range(thread, load(step + step_at.sequences), threads):
            first, count = load_i32(first_row + 4 * s), load_i32(row_count + 4 * s)
            for i in range(0, width * 4, 64):
                vstore(out + s * width * 4 + i, pooled(x + first * width * 4 + i, width * 4, count))

    return body


@kernel("normalize", UnitLengthRecord, by_row=True)
def build_normalize(simd: Any) -> Any:
    at, load, vload, vstore, splat = UnitLengthRecord.at, simd.load_i64, simd.vload, simd.vstore, simd.splat
    fma, vsum = simd.fma, simd.vsum

    @simd.jit
    def body(record, step, thread, threads):
        x, width = load(record + at.x), load(record + at.width)
        for row in range(thread, load(step + load(record + at.rows)), threads):
            here, squares = x + row * width * 4, splat(0.0)
            for i in range(0, width * 4, 64):
                value = vload(here + i)
                squares = fma(value, value, squares)
            scale = np.float32(1) / np.sqrt(max(vsum(squares), np.float32(1e-24)))
            for i in range(0, width * 4, 64):
                vstore(here + i, vload(here + i) * splat(scale))

    return body
