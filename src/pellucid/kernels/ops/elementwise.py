"""Small operations: residual addition, scaling, clipping, capping of logits.

add      out = a + factor * b                   (T, D)
scale    x = factor * x                         (T, N), in place
scale_by x = factor[0] * x                      (T, N), in place; the factor is in memory
clip     x = min(max(x, -bound), bound)         (T, N), in place
softcap  x = cap * tanh(x / cap)                (T, N), in place  (Gemma Team 2024, Gemma 2)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record


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


class SoftcapRecord(InPlaceRecord):
    cap: float


def softcap_reference(x: NDArray[Any], cap: float) -> NDArray[np.float64]:
    """Compute softcap in float64."""
    return np.asarray(cap * np.tanh(x.astype(np.float64) / cap), np.float64)


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
