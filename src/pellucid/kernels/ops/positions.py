"""Positions besides rotary embedding: sinusoids that are added, and the scale of queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record, StepRecord


class SinusoidalRecord(Record):
    """Sinusoidal positions (Vaswani et al. 2017) in tensor2tensor's order: sines in the first half, then cosines.

        x[j] += sin(position * f_j)        x[D/2 + j] += cos(position * f_j)

    In: (T, D) float32, changed in place. Angles are computed in float64.
    """

    x: Address  # (T, D) float32
    stride: int  # bytes from one row to the next
    frequencies: Address  # (pairs,) float64, radians per position
    pairs: int  # D / 2
    offset: int  # of the first position


def sinusoidal_reference(positions: NDArray[Any], frequencies: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the vectors of positions, (T, D) float64."""
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


@kernel("sinusoidal", SinusoidalRecord)
def build_sinusoidal(simd: Any) -> Any:
    at, step_at, load = SinusoidalRecord.at, StepRecord.at, simd.load_i64
    load_f32, store_f32 = simd.load_f32, simd.store_f32

    @simd.jit
    def body(record, step, thread, threads):
        frequencies, pairs = load(record + at.frequencies), load(record + at.pairs)
        positions, offset = load(step + step_at.positions), load(record + at.offset)
        for token in range(thread, load(step + step_at.tokens), threads):
            position = np.float64(simd.load_i32(positions + 4 * token) + offset)
            x = load(record + at.x) + token * load(record + at.stride)
            for j in range(pairs):
                sine, cosine = simd.sine_and_cosine(position * simd.load_f64(frequencies + 8 * j))
                first, second = x + 4 * j, x + 4 * (pairs + j)
                store_f32(first, load_f32(first) + np.float32(sine))
                store_f32(second, load_f32(second) + np.float32(cosine))

    return body


class QueryScaleRecord(Record):
    """Multiplies queries by a factor that grows with the position, so that attention stays sharp in long contexts.

    q *= 1 + beta log(1 + floor((position + offset) / length))       (T, H * K), in place       (Meta 2025, Llama 4)
    """

    x: Address  # (T, H * K) float32
    width: int  # H * K, a multiple of 16
    heads: int  # H: threads divide the (row, head) pairs
    beta: float
    length: int  # number of positions with the same factor
    offset: int  # added to positions


def query_scale_reference(
    x: NDArray[Any], positions: NDArray[Any], beta: float, length: int, offset: int = 0
) -> NDArray[np.float64]:
    """Scale (T, N) in float64."""
    factors = 1 + beta * np.log(1 + np.floor((positions + offset) / length))
    return np.asarray(x.astype(np.float64) * factors[:, None], np.float64)


@kernel("query_scale", QueryScaleRecord)
def build_query_scale(simd: Any) -> Any:
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
