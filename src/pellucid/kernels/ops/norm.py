"""Normalisation of rows: RMS (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016).

    rms      y = x / sqrt(mean(x^2) + eps) * weight
    layer    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

In: (T, ...) float32. Out: the same shape in float32, and optionally activation blocks for the next matrix product. A
row may consist of ``parts`` that are normalised separately with the same weight. Query and key norms have one part for
each head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record
from pellucid.kernels.matmul.quantize import block_bytes, quantize_blocks


class NormRecord(Record):
    x: Address  # (T, parts * width) float32
    width: int  # values from one part to the next, a multiple of 16
    count: int  # number of values of a part; zeros follow up to ``width``
    parts: int
    weight: Address  # (width,) float32
    weight_part: int  # bytes from one part's weights to the next; 0: all parts share the weights
    bias: Address  # (width,) float32, zeros after ``count``; layer norm only
    eps: float
    out: Address  # (T, parts * width) float32; may be x
    quantized: Address  # (T, parts * width / 32) activation blocks, or 0: not written
    factors: Address  # (width,) float32: factors of the columns of activation blocks
    # 1: if there is one row, every thread writes its own copy, so that no barrier is needed. ``out`` must not be ``x``.
    replicated: int
    rows: Count


def reference(
    x: NDArray[Any], weight: NDArray[Any], eps: float, bias: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Compute the norm in float64 over the last axis: layer norm if there is a bias, else RMS."""
    x = x.astype(np.float64)
    if bias is None:
        return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight, np.float64)
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return np.asarray(scaled * weight + bias, np.float64)


@kernel("norm", NormRecord, by_row=True, quantizes="width")
def build(simd: Any, kind: str, activation_bits: int, columns: str = "") -> Any:
    """Build the norm. ``kind`` is "rms" or "layer", ``activation_bits`` is the width of the activation blocks.

    ``columns`` is as in the kernel ``quantize``; ``parts`` must then be 1.
    """
    at, load = NormRecord.at, simd.load_i64
    vload, vstore, vsum, fma, splat = simd.vload, simd.vstore, simd.vsum, simd.fma, simd.splat
    quantize, keep = quantize_blocks(simd, activation_bits, columns), simd.keep
    layer, q_bytes = kind == "layer", block_bytes(activation_bits)

    @simd.jit
    def row_norm(x, width, count, weight, bias, eps, out):
        mean = np.float32(0)
        if layer:
            total = splat(0.0)
            for i in range(0, width * 4, 64):
                total = total + vload(x + i)
            mean = vsum(total) / np.float32(count)
        centre, squares = splat(mean), splat(0.0)
        for i in range(0, width * 4, 64):
            value = vload(x + i) - centre
            if layer and i + 64 > count * 4:
                value = keep(value, 0, count - i // 4, np.float32(0))
            squares = fma(value, value, squares)
        scale = np.float32(1) / np.sqrt(vsum(squares) / np.float32(count) + eps)
        for i in range(0, width * 4, 64):
            value = (vload(x + i) - centre) * splat(scale)
            if layer and i + 64 > count * 4:
                value = keep(value, 0, count - i // 4, np.float32(0))
            if layer:
                vstore(out + i, fma(value, vload(weight + i), vload(bias + i)))
            else:
                vstore(out + i, value * vload(weight + i))

    @simd.jit
    def body(record, step, thread, threads):
        x, width, parts = load(record + at.x), load(record + at.width), load(record + at.parts)
        count = load(record + at.count)
        weight, bias, out = load(record + at.weight), load(record + at.bias), load(record + at.out)
        quantized, weight_stride = load(record + at.quantized), load(record + at.weight_part)
        factors = load(record + at.factors)
        eps = np.float32(simd.load_f64(record + at.eps))
        total = load(step + load(record + at.rows)) * parts
        (begin, end), copy = simd.thread_range(total, thread, threads), 0
        if total == 1 and load(record + at.replicated) != 0:
            begin, end, copy = 0, 1, thread
        for i in range(begin, end):
            row = i + copy
            to = out + row * width * 4
            row_norm(x + i * width * 4, width, count, weight + i % parts * weight_stride, bias, eps, to)
            if quantized != 0:
                quantize(to, quantized + row * (width // 32) * q_bytes, width // 32, factors)

    return body
