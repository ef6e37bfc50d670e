"""Replaces the logits of the tokens that a bit mask forbids by minus infinity.

In: logits (n,) float32, n >= 16, and a bit for each logit in uint32 words, lowest bit first. Out: (n,) float32. Called
directly from Python.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Record


class MaskRecord(Record):
    logits: Address  # (n,) float32
    count: int  # n, at least 16
    mask: Address  # (n / 32, rounded up,) uint32
    out: Address  # (n,) float32


def reference(logits: NDArray[Any], mask: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Compute the reference in NumPy."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(logits)]
    return np.where(bits, logits, np.float32(-np.inf)).astype(np.float32)


@kernel("logits.mask", MaskRecord)
def build(simd: Any) -> Any:
    at, load, vload, vstore = MaskRecord.at, simd.load_i64, simd.vload, simd.vstore
    select_bits, load_u16, load_u8, splat = simd.select_bits, simd.load_u16, simd.load_u8, simd.splat
    load_f32, store_f32 = simd.load_f32, simd.store_f32

    @simd.jit
    def body(record, step, thread, threads):
        logits, count = load(record + at.logits), load(record + at.count)
        mask, out = load(record + at.mask), load(record + at.out)
        minus_infinity = np.float32(-np.inf)
        for i in range(0, count - 15, 16):
            x = select_bits(load_u16(mask + i // 8), vload(logits + i * 4), splat(minus_infinity))
            vstore(out + i * 4, x)
        for i in range(count // 16 * 16, count):
            allowed = load_u8(mask + i // 8) >> (i & 7) & 1
            store_f32(out + i * 4, load_f32(logits + i * 4) if allowed != 0 else minus_infinity)

    return body
