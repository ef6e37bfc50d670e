"""Activations to 8 bits, 32 at a time: what the integer matrix products multiply by.

In: (T, D) float32. Out: (T, D/32) blocks of 48 bytes, so that one address finds all that a block needs:

    q        32 x int8     round(x / scale), ties to even
    scale    float32       max |x| / 127
    sum      float32       scale * (q0 + ... + q31), for formats with a minimum
    -sum16   2 x int32     minus the sums of the two halves, for formats with a zero point
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.library import kernel
from pellucid.kernels.record import Address, Count, Record, Step

BLOCK_BYTES = 48
Q8 = np.dtype([("q", "i1", 32), ("scale", "f4"), ("sum", "f4"), ("minus_sum", "i4", 2)])
SMALLEST = 1e-30  # a block whose largest value is below this is zero: 127 / max must stay finite


class Quantize(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 32
    out: Address  # (T, D/32) Q8 blocks
    rows: Count


def reference(x: NDArray[np.floating[Any]]) -> NDArray[Any]:
    """The same in NumPy, from (T, D): (T, D/32) of ``Q8``. The scale is float32, as the kernel's is."""
    blocks = np.asarray(x, np.float32).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(-1)
    alive = largest >= SMALLEST
    inverse = np.where(alive, np.float32(127) / np.where(alive, largest, 1), np.float32(0))
    out = np.zeros(blocks.shape[:2], Q8)
    out["q"] = np.rint(blocks * inverse[..., None].astype(np.float32)).astype(np.int8)
    out["scale"] = np.where(alive, largest * np.float32(1 / 127), 0)
    out["sum"] = out["scale"] * out["q"].sum(-1, dtype=np.int32).astype(np.float32)
    out["minus_sum"] = -out["q"].reshape(*blocks.shape[:2], 2, 16).sum(-1, dtype=np.int32)
    return out


@functools.cache
def quantize_block(simd: Any) -> Any:
    """The helper that other kernels fuse: (address of 32 float32, address of the block)."""
    jit, vload, splat = simd.jit, simd.vload, simd.splat
    vmax, vabs, vmax_lane, vround = simd.vmax, simd.vabs, simd.vmax_lane, simd.vround
    to_i32, vsum_i32, vstore_i8 = simd.to_i32, simd.vsum_i32, simd.vstore_i8
    store_f32, store_i32 = simd.store_f32, simd.store_i32
    smallest, seven_bits, scaled = np.float32(SMALLEST), np.float32(127), np.float32(1 / 127)

    @jit
    def quantize(x, out):
        low, high = vload(x), vload(x + 64)
        largest = vmax_lane(vmax(vabs(low), vabs(high)))
        inverse = seven_bits / largest
        scale = largest * scaled
        if largest < smallest:
            inverse = np.float32(0)
            scale = np.float32(0)
        low_q, high_q = to_i32(vround(low * splat(inverse))), to_i32(vround(high * splat(inverse)))
        vstore_i8(out, low_q)
        vstore_i8(out + 16, high_q)
        low_sum, high_sum = vsum_i32(low_q), vsum_i32(high_q)
        store_f32(out + 32, scale)
        store_f32(out + 36, scale * np.float32(low_sum + high_sum))
        store_i32(out + 40, -low_sum)
        store_i32(out + 44, -high_sum)

    return quantize


@kernel("quantize", Quantize)
def build(simd: Any) -> Any:
    at, load = Quantize.at, simd.load_i64
    block = quantize_block(simd)

    @simd.jit
    def body(record, step, thread, threads):
        x, out = load(record + at.x), load(record + at.out)
        total = load(step + load(record + at.rows)) * (load(record + at.width) // 32)
        for i in range(total * thread // threads, total * (thread + 1) // threads):
            block(x + i * 128, out + i * BLOCK_BYTES)

    return body


__all__ = ["BLOCK_BYTES", "Q8", "Quantize", "Step", "quantize_block", "reference"]
