"""Positions: rotary embedding, sinusoids that are added, and the scale of queries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record, StepRecord

# Positions besides rotary embedding: sinusoids that are added, and the scale of queries.


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


# Rotary position embedding (Su et al. 2021, RoFormer): rotates pairs of a head's values by the position.
#
# Pair j is rotated by position * inverse_frequency[j]. Pairs are (2j, 2j+1), "interleaved", as in the paper and in
# llama's GGUF files, or (j, j + K/2), "half", as in GPT-NeoX and in transformers.
#
# ``rotary_angles`` computes a step's cosines and sines, (T, 2, K/2) float32, in float64. ``rotary`` rotates queries or
# keys, (T, heads, K) float32, in place. Only the first 2 * pairs values of a head are rotated.


class RotaryAnglesRecord(Record):
    inverse_frequency: Address  # (K/2,) float64, radians per position; several tables, one after the other
    scaled_stride: int  # bytes from the table of token type 0 to the table of type 1; 0: one table
    unscaled: int  # tokens of the longest text of type 0, for readers of the plan; 0: one table
    pairs: int  # K/2
    magnitude: float  # factor of cosines and sines (1 except for YaRN)
    out: Address  # (T, 2, K/2) float32: cosines, then sines
    stride: int  # bytes from one token's table to the next


class RotaryRecord(Record):
    x: Address  # (T, heads * head_dim) float32, rotated in place
    heads: int
    head_dim: int  # K
    pairs: int
    angles: Address  # (T, 2, pairs) float32
    stride: int  # bytes from one token's table to the next


def reference(
    x: NDArray[Any], positions: NDArray[Any], inverse_frequency: NDArray[Any], interleaved: bool
) -> NDArray[np.float64]:
    """Compute the rotation in float64 from (T, heads, K)."""
    x = x.astype(np.float64)
    pairs = len(inverse_frequency)
    angle = (positions[:, None] * inverse_frequency)[:, None, :]
    cos, sin = np.cos(angle), np.sin(angle)
    out = x.copy()
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., first] * sin + x[..., second] * cos
    return out


@kernel("rotary_angles", RotaryAnglesRecord)
def build_angles(simd: Any) -> Any:
    at, step_at, load = RotaryAnglesRecord.at, StepRecord.at, simd.load_i64

    @simd.jit
    def body(record, step, thread, threads):
        frequencies, pairs = load(record + at.inverse_frequency), load(record + at.pairs)
        out, scaled_stride = load(record + at.out), load(record + at.scaled_stride)
        types = load(step + step_at.token_types)
        magnitude, stride = simd.load_f64(record + at.magnitude), load(record + at.stride)
        positions = load(step + step_at.positions)
        for token in range(thread, load(step + step_at.tokens), threads):
            position = np.float64(simd.load_i32(positions + 4 * token))
            table = out + token * stride
            frequency = frequencies + scaled_stride * np.int64(simd.load_i32(types + 4 * token))
            for j in range(pairs):
                sine, cosine = simd.sine_and_cosine(position * simd.load_f64(frequency + 8 * j))
                simd.store_f32(table + j * 4, np.float32(cosine * magnitude))
                simd.store_f32(table + (pairs + j) * 4, np.float32(sine * magnitude))

    return body


@kernel("rotary", RotaryRecord)
def build(simd: Any, pairing: str) -> Any:
    """Build the rotation of queries or keys. ``pairing`` is "interleaved" or "half"."""
    at, step_at, load = RotaryRecord.at, StepRecord.at, simd.load_i64
    load_f32, store_f32, vload = simd.load_f32, simd.store_f32, simd.vload
    vstore, fma, splat = simd.vstore, simd.fma, simd.splat
    evens, odds, zipped_low, zipped_high = simd.evens, simd.odds, simd.zipped_low, simd.zipped_high
    lane0 = simd.lane0
    interleaved = pairing == "interleaved"

    @simd.jit
    def turn(head, pairs, cosines, sines):
        """Rotate a head: sixteen pairs at a time, then one by one, with the same rounding."""
        nothing, whole = splat(0.0), pairs // 16 * 16
        for j in range(0, whole, 16):
            first, second = head + 4 * j, head + 4 * (j + pairs)
            if interleaved:
                first, second = head + 8 * j, head + 8 * j + 64
            a, b = vload(first), vload(second)
            if interleaved:
                a, b = evens(a, b), odds(a, b)
            cos, sin = vload(cosines + 4 * j), vload(sines + 4 * j)
            x, y = fma(a, cos, nothing - b * sin), fma(b, cos, a * sin)
            if interleaved:
                x, y = zipped_low(x, y), zipped_high(x, y)
            vstore(first, x)
            vstore(second, y)
        for j in range(whole, pairs):
            first, second = head + 4 * j, head + 4 * (j + pairs)
            if interleaved:
                first, second = head + 8 * j, head + 8 * j + 4
            a, b = splat(load_f32(first)), splat(load_f32(second))
            cos, sin = splat(load_f32(cosines + 4 * j)), splat(load_f32(sines + 4 * j))
            store_f32(first, lane0(fma(a, cos, nothing - b * sin)))
            store_f32(second, lane0(fma(b, cos, a * sin)))

    @simd.jit
    def body(record, step, thread, threads):
        x, heads, width = load(record + at.x), load(record + at.heads), load(record + at.head_dim)
        pairs, angles, stride = load(record + at.pairs), load(record + at.angles), load(record + at.stride)
        total = load(step + step_at.tokens) * heads
        for i in range(*simd.thread_range(total, thread, threads)):
            table = angles + i // heads * stride
            turn(x + i * width * 4, pairs, table, table + pairs * 4)

    return body
