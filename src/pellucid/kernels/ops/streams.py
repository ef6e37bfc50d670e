"""Operations of Gemma 3n besides attention and feed-forward: alternating updates, and sparse gates.

Alternating updates (Baykal et al. 2023, AltUp): the model has S residual streams. A block computes on one stream.

predict      predicted[i] = streams[i] + sum over j of coefs[i, j] streams[j]    (T, S, D) -> (T, S, D)
             x = predicted[active]                                                         -> (T, D)
correct      streams[i] = predicted[i] + (1 + coefs[i]) (x - predicted[active])  (T, S, D) -> (T, S, D)
             out = scale * streams[active]                                                 -> (T, D)
spread       streams[i] += x, for all streams but the first                      (T, S, D), in place
match        x *= rms(like) / rms(x)                                             (R, D), in place

Sparse gates (Gemma Team 2025, Gemma 3n): only the largest gate values of a token stay.

sparsify     x = max(0, x - mean - deviations * standard deviation of the row)   (T, N), in place
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record

MIN_MEAN_SQUARE = 1e-5  # lower bound of a mean square that is a divisor


class StreamsRecord(Record):
    """Fields of operations on all streams."""

    streams: Address  # (T, S * D) float32
    width: int  # D, a multiple of 16
    count: int  # S
    x: Address  # (T, D) float32
    rows: Count


class PredictRecord(StreamsRecord):
    coefs: Address  # (T, S * S) float32: coefs[i, j] in row-major order
    coefs_stride: int  # bytes from one row to the next
    active: int
    predicted: Address  # (T, S * D) float32


class CorrectRecord(StreamsRecord):
    """``x`` is the block's output for the active stream."""

    predicted: Address  # (T, S * D) float32
    coefs: Address  # (T, S) float32
    coefs_stride: int  # bytes from one row to the next
    active: int
    scale: Address  # (D,) float32; or 0: all are 1
    out: Address  # (T, D) float32


class MatchRecord(Record):
    x: Address  # (R, D) float32
    like: Address  # (R, D) float32
    width: int  # D, a multiple of 16
    count: int  # number of values of a row; zeros follow
    rows: Count


class SparsifyRecord(Record):
    x: Address  # (T, N) float32
    width: int  # N, a multiple of 16
    count: int  # number of values of a row; zeros follow and stay
    deviations: float
    rows: Count


def predict_reference(streams: NDArray[Any], coefs: NDArray[Any]) -> NDArray[np.float64]:
    """Predict (T, S, D) from coefficients (T, S, S), in float64."""
    x = streams.astype(np.float64)
    return np.asarray(x + np.einsum("tij,tjd->tid", coefs.astype(np.float64), x), np.float64)


def correct_reference(streams: NDArray[Any], coefs: NDArray[Any], x: NDArray[Any], active: int) -> NDArray[np.float64]:
    """Correct (T, S, D) with coefficients (T, S), in float64."""
    before = streams.astype(np.float64)
    change = x.astype(np.float64) - before[:, active]
    return np.asarray(before + (1 + coefs.astype(np.float64))[:, :, None] * change[:, None], np.float64)


def match_reference(x: NDArray[Any], like: NDArray[Any]) -> NDArray[np.float64]:
    """Scale the rows of x (R, D), in float64."""
    x, like = x.astype(np.float64), like.astype(np.float64)
    mean_square = np.maximum((x * x).mean(-1, keepdims=True), MIN_MEAN_SQUARE)
    return np.asarray(x * np.sqrt((like * like).mean(-1, keepdims=True) / mean_square), np.float64)


def sparsify_reference(x: NDArray[Any], deviations: float) -> NDArray[np.float64]:
    """Sparsify (T, N), in float64."""
    x = x.astype(np.float64)
    cut = x.mean(-1, keepdims=True) + deviations * x.std(-1, keepdims=True)
    return np.asarray(np.maximum(x - cut, 0.0), np.float64)


@kernel("streams_predict", PredictRecord)
def build_predict(simd: Any) -> Any:
    at, load, load_f32 = PredictRecord.at, simd.load_i64, simd.load_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma

    @simd.jit
    def body(record, step, thread, threads):
        width, count = 4 * load(record + at.width), load(record + at.count)
        streams, predicted = load(record + at.streams), load(record + at.predicted)
        active, rows = load(record + at.active), load(step + load(record + at.rows))
        pieces = rows * (width // 64)
        for piece in range(*simd.thread_range(pieces, thread, threads)):
            row, column = piece // (width // 64), piece % (width // 64) * 64
            first = row * count * width + column
            coefs = load(record + at.coefs) + row * load(record + at.coefs_stride)
            for i in range(count):
                total = vload(streams + first + i * width)
                for j in range(count):
                    coef = splat(load_f32(coefs + 4 * (i * count + j)))
                    total = fma(coef, vload(streams + first + j * width), total)
                vstore(predicted + first + i * width, total)
                if i == active:
                    vstore(load(record + at.x) + row * width + column, total)

    return body


@kernel("streams_correct", CorrectRecord)
def build_correct(simd: Any) -> Any:
    at, load, load_f32 = CorrectRecord.at, simd.load_i64, simd.load_f32
    vload, vstore, splat, fma = simd.vload, simd.vstore, simd.splat, simd.fma

    @simd.jit
    def body(record, step, thread, threads):
        width, count = 4 * load(record + at.width), load(record + at.count)
        streams, predicted = load(record + at.streams), load(record + at.predicted)
        active, rows = load(record + at.active), load(step + load(record + at.rows))
        pieces = rows * (width // 64)
        for piece in range(*simd.thread_range(pieces, thread, threads)):
            row, column = piece // (width // 64), piece % (width // 64) * 64
            first, here = row * count * width + column, row * width + column
            coefs = load(record + at.coefs) + row * load(record + at.coefs_stride)
            change = vload(load(record + at.x) + here) - vload(predicted + first + active * width)
            for i in range(count):
                factor = splat(np.float32(1) + load_f32(coefs + 4 * i))
                total = fma(factor, change, vload(predicted + first + i * width))
                vstore(streams + first + i * width, total)
                if i == active:
                    scale = load(record + at.scale)
                    if scale != 0:
                        total = total * vload(scale + column)
                    vstore(load(record + at.out) + here, total)

    return body


@kernel("streams_spread", StreamsRecord)
def build_spread(simd: Any) -> Any:
    at, load, vload, vstore = StreamsRecord.at, simd.load_i64, simd.vload, simd.vstore

    @simd.jit
    def body(record, step, thread, threads):
        width, count = 4 * load(record + at.width), load(record + at.count)
        streams = load(record + at.streams)
        pieces = load(step + load(record + at.rows)) * (width // 64)
        for piece in range(*simd.thread_range(pieces, thread, threads)):
            row, column = piece // (width // 64), piece % (width // 64) * 64
            value = vload(load(record + at.x) + row * width + column)
            for i in range(1, count):
                to = streams + (row * count + i) * width + column
                vstore(to, vload(to) + value)

    return body


@kernel("streams_match", MatchRecord)
def build_match(simd: Any) -> Any:
    at, load, vload, vstore = MatchRecord.at, simd.load_i64, simd.vload, simd.vstore
    splat, fma, vsum = simd.splat, simd.fma, simd.vsum

    @simd.jit
    def squares(x, width):
        total = splat(0.0)
        for i in range(0, width, 64):
            total = fma(vload(x + i), vload(x + i), total)
        return vsum(total)

    @simd.jit
    def body(record, step, thread, threads):
        width, count = 4 * load(record + at.width), np.float32(load(record + at.count))
        rows = load(step + load(record + at.rows))
        for row in range(*simd.thread_range(rows, thread, threads)):
            x, like = load(record + at.x) + row * width, load(record + at.like) + row * width
            mean_square = max(squares(x, width) / count, np.float32(MIN_MEAN_SQUARE))
            factor = splat(np.sqrt(squares(like, width) / count) / np.sqrt(mean_square))
            for i in range(0, width, 64):
                vstore(x + i, vload(x + i) * factor)

    return body


@kernel("sparsify", SparsifyRecord, by_row=True)
def build_sparsify(simd: Any) -> Any:
    at, load, vload, vstore = SparsifyRecord.at, simd.load_i64, simd.vload, simd.vstore
    splat, fma, vsum, vmax, keep = simd.splat, simd.fma, simd.vsum, simd.vmax, simd.keep

    @simd.jit
    def body(record, step, thread, threads):
        width, count = 4 * load(record + at.width), load(record + at.count)
        deviations = np.float32(simd.load_f64(record + at.deviations))
        rows = load(step + load(record + at.rows))
        for row in range(*simd.thread_range(rows, thread, threads)):
            x, total, squares = load(record + at.x) + row * width, splat(0.0), splat(0.0)
            for i in range(0, width, 64):
                total = total + vload(x + i)
            mean = vsum(total) / np.float32(count)
            for i in range(0, width, 64):
                value = vload(x + i) - splat(mean)
                if i + 64 > count * 4:
                    value = keep(value, 0, count - i // 4, np.float32(0))
                squares = fma(value, value, squares)
            cut = splat(mean + deviations * np.sqrt(vsum(squares) / np.float32(count)))
            for i in range(0, width, 64):
                value = vmax(vload(x + i) - cut, splat(0.0))
                if i + 64 > count * 4:
                    value = keep(value, 0, count - i // 4, np.float32(0))
                vstore(x + i, value)

    return body
