"""Elementwise operations: residual addition, scaling, clipping, capping of logits; activations (``ActivationRecord``).

add      out = a + factor * b                   (T, D)
scale    x = factor * x                         (T, N), in place
scale_by x = factor[0] * x                      (T, N), in place; the factor is in memory
clip     x = min(max(x, -bound), bound)         (T, N), in place
softcap  x = cap * tanh(x / cap)                (T, N), in place  (Gemma Team 2024, Gemma 2)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record
from pellucid.kernels.matmul.product import partition
from pellucid.kernels.matmul.quantize import block_bytes, quantize_blocks


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


KINDS = ("silu", "gelu_tanh", "gelu", "relu", "relu2", "clamped_silu", "sigmoid", "tanh", "none")


class ActivationRecord(Record):
    """Activation functions of the feed-forward: y = f(gate) * up, or y = f(x).

        silu        x * sigmoid(x)                                   (Elfwing et al. 2017)
        gelu_tanh   x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)) (Hendrycks and Gimpel 2016, the tanh form)
        gelu        x * (1 + erf(x / sqrt(2))) / 2                   (the exact form; erf after Abramowitz and
                                                                      Stegun 7.1.26, absolute error 1.5e-7)
        relu        max(x, 0)
        relu2       max(x, 0)^2                                      (So et al. 2021, Primer)
        clamped_silu  x * sigmoid(sharpness * x) * (1 + up), x clamped to <= limit, up to +-limit (OpenAI 2025, gpt-oss)
        sigmoid     1 / (1 + e^-x): a gate
        tanh        1 - 2 / (e^2x + 1): an output layer
        none        x: a product with up

    In: one or two (T, F) float32. Out: (T, F) float32, and optionally activation blocks for the next matrix product.
    """

    x: Address  # (T, F) float32: the function's argument
    up: Address  # (T, F) float32: the factor of the result, or 0
    limit: float  # of clamped_silu
    sharpness: float  # of clamped_silu
    width: int  # F, a multiple of 16; of 32 if activation blocks are written
    out: Address  # (T, F) float32; may be x
    quantized: Address  # (T, F/32) activation blocks, or 0: not written
    rows: Count


def activation_reference(
    kind: str, x: NDArray[Any], up: NDArray[Any] | float = 1.0, limit: float = 7.0, sharpness: float = 1.702
) -> NDArray[np.float64]:
    """Compute the activation in float64."""
    x = x.astype(np.float64)
    if kind == "clamped_silu":
        x = np.minimum(x, limit)
        up = up if isinstance(up, float) else np.clip(up, -limit, limit) + 1.0
    erf = np.vectorize(math.erf, otypes=[np.float64])
    functions = {
        "silu": lambda: x / (1 + np.exp(-x)),
        "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu": lambda: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        "relu": lambda: np.maximum(x, 0),
        "relu2": lambda: np.maximum(x, 0) ** 2,
        "clamped_silu": lambda: x / (1 + np.exp(-sharpness * x)),
        "sigmoid": lambda: 1 / (1 + np.exp(-x)),
        "tanh": lambda: np.tanh(x),
        "none": lambda: x,
    }
    return np.asarray(functions[kind]() * up, np.float64)


def derivative(
    kind: str, x: NDArray[Any], up: NDArray[Any] | None = None, limit: float = 7.0, sharpness: float = 1.702
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compute y = f(x) * up in float64, with its derivatives by x and by up."""
    x = x.astype(np.float64)
    inside, factor = np.ones_like(x), np.ones_like(x) if up is None else up.astype(np.float64)
    of_factor = np.ones_like(x)
    if kind == "clamped_silu":
        inside, of_factor = (x <= limit).astype(np.float64), (np.abs(factor) <= limit).astype(np.float64)
        x, factor = np.minimum(x, limit), np.clip(factor, -limit, limit) + 1.0
    f = activation_reference(kind, x, 1.0, limit, sharpness) if kind != "clamped_silu" else x * _sigmoid(sharpness * x)
    if kind in ("silu", "clamped_silu"):
        rate = sharpness if kind == "clamped_silu" else 1.0
        s = _sigmoid(rate * x)
        slope = s * (1 + rate * x * (1 - s))
    elif kind == "gelu_tanh":
        c = math.sqrt(2 / math.pi)
        t = np.tanh(c * (x + 0.044715 * x**3))
        slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
    elif kind == "gelu":
        density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        slope = np.divide(f, x, out=np.full_like(x, 0.5), where=x != 0) + x * density
    else:
        slopes = {
            "relu": lambda: (x > 0).astype(np.float64),
            "relu2": lambda: 2 * np.maximum(x, 0),
            "sigmoid": lambda: f * (1 - f),
            "tanh": lambda: 1 - f * f,
            "none": lambda: np.ones_like(x),
        }
        slope = slopes[kind]()
    return f * factor, slope * factor * inside, f * of_factor


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-x)), np.float64)


def sigmoid_vector(simd: Any) -> Any:
    """Make the helper sigmoid(x) = 1 / (1 + e^-x) for 16 lanes."""
    splat, vexp, vmin, vreciprocal = simd.splat, simd.vexp, simd.vmin, simd.vreciprocal

    @simd.jit
    def sigmoid(x):
        return vreciprocal(splat(1.0) + vexp(vmin(splat(0.0) - x, splat(87.0))))

    return sigmoid


def _function(simd: Any, kind: str) -> Any:
    splat, fma, vexp, vmax, vabs = simd.splat, simd.fma, simd.vexp, simd.vmax, simd.vabs
    select_below, vreciprocal, sigmoid = simd.select_below, simd.vreciprocal, sigmoid_vector(simd)
    tanh = tanh_vector(simd)

    @simd.jit
    def silu(x, sharpness):
        return x * sigmoid(x)

    @simd.jit
    def clamped_silu(x, sharpness):
        return x * sigmoid(x * splat(sharpness))

    @simd.jit
    def gelu_tanh(x, sharpness):
        inner = fma(x * x * x, splat(0.044715), x)
        return x * sigmoid(inner * splat(1.5957691216057308))

    @simd.jit
    def gelu(x, sharpness):
        z = vabs(x) * splat(0.7071067811865476)
        t = vreciprocal(fma(z, splat(0.3275911), splat(1.0)))
        p = fma(t, splat(1.061405429), splat(-1.453152027))
        p = fma(p, t, splat(1.421413741))
        p = fma(p, t, splat(-0.284496736))
        p = fma(p, t, splat(0.254829592))
        tail = p * t * vexp(splat(0.0) - z * z)  # 1 - erf(z)
        half = splat(0.5) * x
        return select_below(x, splat(0.0), half * tail, half * (splat(2.0) - tail))

    @simd.jit
    def relu(x, sharpness):
        return vmax(x, splat(0.0))

    @simd.jit
    def relu2(x, sharpness):
        positive = vmax(x, splat(0.0))
        return positive * positive

    @simd.jit
    def gate(x, sharpness):
        return sigmoid(x)

    @simd.jit
    def hyperbolic(x, sharpness):
        return tanh(x)

    @simd.jit
    def none(x, sharpness):
        return x

    functions = {"silu": silu, "gelu_tanh": gelu_tanh, "gelu": gelu, "relu": relu, "relu2": relu2}
    functions |= {"clamped_silu": clamped_silu, "sigmoid": gate, "tanh": hyperbolic, "none": none}
    return functions[kind]


def _clamp(simd: Any, kind: str) -> Any:
    """Make the helpers that limit an argument and its factor: (x, limit) -> x."""
    splat, vmin, vmax = simd.splat, simd.vmin, simd.vmax

    @simd.jit
    def same(x, limit):
        return x

    @simd.jit
    def below(x, limit):
        return vmin(x, splat(limit))

    @simd.jit
    def within(up, limit):
        return vmax(vmin(up, splat(limit)), splat(-limit)) + splat(1.0)

    return (below, within) if kind == "clamped_silu" else (same, same)


@kernel("activation", ActivationRecord, by_row=True, quantizes="width")
def build_activation(simd: Any, kind: str, activation_bits: int) -> Any:
    """Build the activation. ``kind`` is one of KINDS, ``activation_bits`` is the width of the activation blocks."""
    at, load, vload, vstore = ActivationRecord.at, simd.load_i64, simd.vload, simd.vstore
    function, quantize = _function(simd, kind), quantize_blocks(simd, activation_bits)
    (limited, factor), q_bytes = _clamp(simd, kind), block_bytes(activation_bits)
    part = partition(simd)

    @simd.jit
    def body(record, step, thread, threads):
        x, up, out = load(record + at.x), load(record + at.up), load(record + at.out)
        quantized, limit = load(record + at.quantized), np.float32(simd.load_f64(record + at.limit))
        sharpness = np.float32(simd.load_f64(record + at.sharpness))
        width, rows = load(record + at.width), load(step + load(record + at.rows))
        # The work is divided as in matrix products, so that a thread's input is already in its own CPU cache.
        first, last, first_row, last_row = part(width, rows, thread, threads)
        for row in range(first_row, last_row):
            here = row * width * 4
            for i in range(here + 4 * first, here + 4 * last, 64):
                value = function(limited(vload(x + i), limit), sharpness)
                if up != 0:
                    value = value * factor(vload(up + i), limit)
                vstore(out + i, value)
            if quantized != 0:
                start = here + 4 * first
                quantize(out + start, quantized + start // 128 * q_bytes, (last - first) // 32, 0)

    return body
