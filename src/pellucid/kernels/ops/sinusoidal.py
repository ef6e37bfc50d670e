"""Sinusoidal positions (Vaswani et al. 2017) in tensor2tensor's order: sines in the first half, then cosines.

    x[j] += sin(position * f_j)        x[D/2 + j] += cos(position * f_j)

In: (T, D) float32, changed in place. Angles are computed in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record, StepRecord


class SinusoidalRecord(Record):
    x: Address  # (T, D) float32
    stride: int  # bytes from one row to the next
    frequencies: Address  # (pairs,) float64, radians per position
    pairs: int  # D / 2
    offset: int  # of the first position


def reference(positions: NDArray[Any], frequencies: NDArray[Any]) -> NDArray[np.float64]:
    """Compute the vectors of positions, (T, D) float64."""
    angles = positions[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


@kernel("sinusoidal", SinusoidalRecord)
def build(simd: Any) -> Any:
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
