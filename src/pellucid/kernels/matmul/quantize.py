"""Quantizes activations in blocks of 32 for the integer matrix products.

In: (T, D) float32. Out: (T, D/32) activation blocks, each contiguous:

    high     32 x int8     with 8 bits: the values, round(x / scale), ties to even
    low      32 x int8     with 16 bits only: values are 128 * high + low, 14 bits and a sign, low from -64 to 63
    scale    float32       max |x| / 127, or max |x| / 16256 with 16 bits
    sum      float32       scale * (q0 + ... + q31), for formats with a minimum
    -sums    2 x int32     minus the sum of the 32 values, and of the second 16: for formats with a zero point

Blocks with 8 bits are one plane, 48 bytes, and cost one integer product for each weight. Blocks with 16 bits are two
planes, 80 bytes, and cost two products, with a rounding error 128 times smaller. The second product is free if memory
bandwidth is the limit.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record

FINEST = 16  # most bits of an activation
LARGEST = {8: 127, 16: 127 * 128}
SMALLEST = 1e-30  # lower bound of a block's max |x|, so that LARGEST / max stays finite


class QuantizeRecord(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 32
    out: Address  # (T, D/32) blocks
    rows: Count


def block_bytes(activation_bits: int) -> int:
    """Bytes of a block of 32 values of 8 or 16 bits."""
    return 32 * activation_bits // 8 + 16


def block_dtype(activation_bits: int) -> np.dtype[Any]:
    """The NumPy dtype of a block."""
    return np.dtype(
        [("q", "i1", (activation_bits // 8, 32)), ("scale", "f4"), ("sum", "f4"), ("minus_sum", "i4", 2)]
    )


def reference(x: NDArray[np.floating[Any]], activation_bits: int) -> NDArray[Any]:
    """Quantize (T, D) to (T, D/32) blocks in NumPy. The scale is computed in float32, as in the kernel."""
    blocks = np.asarray(x, np.float32).reshape(len(x), -1, 32)
    most = np.float32(LARGEST[activation_bits])
    largest = np.abs(blocks).max(-1)
    inverse = (most / np.maximum(largest, np.float32(SMALLEST))).astype(np.float32)
    values = np.rint(blocks * inverse[..., None]).astype(np.int32)
    out = np.zeros(blocks.shape[:2], block_dtype(activation_bits))
    high = values if activation_bits == 8 else (values + 64) // 128
    out["q"][..., 0, :] = high
    if activation_bits == 16:
        out["q"][..., 1, :] = values - 128 * high
    out["scale"] = largest * np.float32(1 / most)
    out["sum"] = out["scale"] * values.sum(-1).astype(np.float32)
    out["minus_sum"][..., 0], out["minus_sum"][..., 1] = -values.sum(-1), -values[..., 16:].sum(-1)
    return out


def values(blocks: NDArray[Any]) -> NDArray[np.float64]:
    """Dequantize blocks (T, D/32) to (T, D)."""
    q = blocks["q"].astype(np.float64)
    whole = q[..., 0, :] if q.shape[-2] == 1 else 128 * q[..., 0, :] + q[..., 1, :]
    return np.asarray(whole * blocks["scale"].astype(np.float64)[..., None]).reshape(len(blocks), -1)


@functools.cache
def quantize_block(simd: Any, activation_bits: int) -> Any:
    """Make the helper that quantizes one block: (address of 32 float32, address of the block).

    Other kernels use it to write activation blocks themselves.
    """
    vload, splat, vmax, vabs, vmax_lane = simd.vload, simd.splat, simd.vmax, simd.vabs, simd.vmax_lane
    nearest, high_plane, low_plane, minus_sums = (
        simd.nearest,
        simd.high_plane,
        simd.low_plane,
        simd.minus_sums,
    )
    vstore_i8, store_f32, store_i64 = simd.vstore_i8, simd.store_f32, simd.store_i64
    smallest, most, scaled = (
        np.float32(SMALLEST),
        np.float32(LARGEST[activation_bits]),
        np.float32(1 / LARGEST[activation_bits]),
    )
    tail, one_plane = 4 * activation_bits, activation_bits == 8

    @simd.jit
    def half(values, inverse, out):
        """Quantize and store 16 values; returns them as int32."""
        whole = nearest(values * inverse)
        if one_plane:
            vstore_i8(out, whole)
        else:
            high = high_plane(whole)
            vstore_i8(out, high)
            vstore_i8(out + 32, low_plane(whole, high))
        return whole

    @simd.jit
    def quantize(x, out):
        first, second = vload(x), vload(x + 64)
        largest = vmax_lane(vmax(vabs(first), vabs(second)))
        times, scale = splat(most / max(largest, smallest)), largest * scaled
        sums = minus_sums(half(first, times, out), half(second, times, out + 16))
        store_f32(out + tail, scale)
        store_f32(out + tail + 4, scale * np.float32(-np.int32(sums)))
        store_i64(out + tail + 8, sums)

    return quantize


@kernel("quantize", QuantizeRecord)
def build(simd: Any, activation_bits: int) -> Any:
    at, load = QuantizeRecord.at, simd.load_i64
    block, size = quantize_block(simd, activation_bits), block_bytes(activation_bits)

    @simd.jit
    def body(record, step, thread, threads):
        x, out = load(record + at.x), load(record + at.out)
        total = load(step + load(record + at.rows)) * (load(record + at.width) // 32)
        for i in range(total * thread // threads, total * (thread + 1) // threads):
            block(x + i * 128, out + i * size)

    return body
