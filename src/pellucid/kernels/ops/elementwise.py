"""Small operations: residual addition, selection of rows, capping of logits, pooling.

add      out = a + factor * b                   (T, D)
scale    x = factor * x                         (T, N), in place
scale_by x = factor[0] * x                      (T, N), in place; the factor is in memory
clip     x = min(max(x, -bound), bound)         (T, N), in place
pick     out[r] = x[output_rows[r]]             (T, D) -> (R, D)
softcap  x = cap * tanh(x / cap)                (T, N), in place  (Gemma Team 2024, Gemma 2)
pool     the mean of a sequence's rows, optionally scaled to length 1    (T, D) -> (B, D)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record, StepRecord


class AddRecord(Record):
    a: Address  # (T, D) float32
    b: Address  # (T, D) float32
    factor: float
    width: int  # D, a multiple of 16
    out: Address  # (T, D) float32; may be a or b
    rows: Count


class InPlaceRecord(Record):
    """Fields of operations on x in place."""

    x: Address  # (T, N) float32
    width: int  # N, a multiple of 16
    rows: Count


class ScaleRecord(InPlaceRecord):
    factor: float


class ScaleByRecord(InPlaceRecord):
    factor: Address  # (1,) float32


class ClipRecord(InPlaceRecord):
    bound: float


class PickRecord(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 16
    out: Address  # (R, D) float32


class SoftcapRecord(InPlaceRecord):
    cap: float


class PoolRecord(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 16
    normalize: int  # 1: scale to length 1
    out: Address  # (B, D) float32


def softcap_reference(x: NDArray[Any], cap: float) -> NDArray[np.float64]:
    """Compute softcap in float64."""
    return np.asarray(cap * np.tanh(x.astype(np.float64) / cap), np.float64)


def pool_reference(x: NDArray[Any], counts: list[int], normalize: bool) -> NDArray[np.float64]:
    """Compute pooling in float64: the means of consecutive runs of ``counts`` rows."""
    ends = np.cumsum(counts)
    means = np.stack([x[end - n : end].astype(np.float64).mean(0) for n, end in zip(counts, ends)])
    return means / np.linalg.norm(means, axis=-1, keepdims=True) if normalize else means


def tanh_vector(simd: Any) -> Any:
    """Make the helper tanh(x) = 1 - 2 / (e^(2x) + 1) for 16 lanes."""
    splat, vexp = simd.splat, simd.vexp

    @simd.jit
    def tanh(x):
        return splat(1.0) - splat(2.0) / (vexp(x + x) + splat(1.0))

    return tanh


@kernel("add", AddRecord, by_row=True)
def build_add(simd: Any) -> Any:
    at, load, vload, vstore, fma = AddRecord.at, simd.load_i64, simd.vload, simd.vstore, simd.fma

    @simd.jit
    def body(record, step, thread, threads):
        a, b, out = load(record + at.a), load(record + at.b), load(record + at.out)
        factor = simd.splat(np.float32(simd.load_f64(record + at.factor)))
        vectors = load(step + load(record + at.rows)) * (load(record + at.width) // 16)
        for i in range(*simd.thread_range(vectors, thread, threads)):
            vstore(out + i * 64, fma(vload(b + i * 64), factor, vload(a + i * 64)))

    return body


def _in_place(simd: Any, operation: str, at: Any, number_at: int) -> Any:
    """Make the body of an operation on x with one number, whose field is at offset ``number_at`` of the record."""
    load, vload, vstore, splat = simd.load_i64, simd.vload, simd.vstore, simd.splat
    vmin, vmax, tanh = simd.vmin, simd.vmax, tanh_vector(simd)

    @simd.jit
    def body(record, step, thread, threads):
        x = load(record + at.x)
        if operation == "scale_by":
            number = simd.load_f32(load(record + number_at))
        else:
            number = np.float32(simd.load_f64(record + number_at))
        vectors = load(step + load(record + at.rows)) * (load(record + at.width) // 16)
        for i in range(*simd.thread_range(vectors, thread, threads)):
            value = vload(x + i * 64)
            if operation == "clip":
                value = vmin(vmax(value, splat(-number)), splat(number))
            elif operation == "softcap":
                value = splat(number) * tanh(value / splat(number))
            else:
                value = value * splat(number)
            vstore(x + i * 64, value)

    return body


@kernel("scale", ScaleRecord, by_row=True)
def build_scale(simd: Any) -> Any:
    return _in_place(simd, "scale", ScaleRecord.at, ScaleRecord.at.factor)


@kernel("scale_by", ScaleByRecord, by_row=True)
def build_scale_by(simd: Any) -> Any:
    return _in_place(simd, "scale_by", ScaleByRecord.at, ScaleByRecord.at.factor)


@kernel("clip", ClipRecord, by_row=True)
def build_clip(simd: Any) -> Any:
    return _in_place(simd, "clip", ClipRecord.at, ClipRecord.at.bound)


@kernel("softcap", SoftcapRecord, by_row=True)
def build_softcap(simd: Any) -> Any:
    return _in_place(simd, "softcap", SoftcapRecord.at, SoftcapRecord.at.cap)


@kernel("pick", PickRecord)
def build_pick(simd: Any) -> Any:
    at, step_at, load, vload, vstore = PickRecord.at, StepRecord.at, simd.load_i64, simd.vload, simd.vstore

    @simd.jit
    def body(record, step, thread, threads):
        x, width, out = load(record + at.x), load(record + at.width), load(record + at.out)
        rows = load(step + step_at.output_rows)
        for r in range(thread, load(step + step_at.outputs), threads):
            source = x + simd.load_i32(rows + 4 * r) * width * 4
            for i in range(0, width * 4, 64):
                vstore(out + r * width * 4 + i, vload(source + i))

    return body


@kernel("pool", PoolRecord)
def build_pool(simd: Any) -> Any:
    at, step_at, load, load_i32 = PoolRecord.at, StepRecord.at, simd.load_i64, simd.load_i32
    vload, vstore, splat, fma, vsum = simd.vload, simd.vstore, simd.splat, simd.fma, simd.vsum

    @simd.jit
    def body(record, step, thread, threads):
        x, width, out = load(record + at.x), load(record + at.width), load(record + at.out)
        first_row, row_count = load(step + step_at.first_row), load(step + step_at.row_count)
        for s in range(thread, load(step + step_at.sequences), threads):
            first, count = load_i32(first_row + 4 * s), load_i32(row_count + 4 * s)
            to, squares = out + s * width * 4, splat(0.0)
            for i in range(0, width * 4, 64):
                total = splat(0.0)
                for row in range(first, first + count):
                    total = total + vload(x + row * width * 4 + i)
                mean = total * splat(np.float32(1) / np.float32(count))
                squares = fma(mean, mean, squares)
                vstore(to + i, mean)
            if load(record + at.normalize) != 0:
                scale = np.float32(1) / np.sqrt(max(vsum(squares), np.float32(1e-24)))
                for i in range(0, width * 4, 64):
                    vstore(to + i, vload(to + i) * splat(scale))

    return body
