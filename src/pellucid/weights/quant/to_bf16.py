"""Converts floats to pairs of bfloat16 numbers, for weights that are rounded when they are loaded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.matmul.file_layout import FileLayout
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

BF16_PAIRS = Format("BF16", PackedLayout("bf16_pairs", 16), FileLayout(2, 4))
"""Blocks of two consecutive numbers of a row."""
NAN = 0x7FC0


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round (N, D) float32 to pairs (N, D/2, 4) uint8, ties to even; D is even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded_bits = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    rounded_bits[np.isnan(values)] = NAN
    return rounded_bits.astype("<u2").view(np.uint8).reshape(len(values), -1, BF16_PAIRS.block_bytes)


def rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 (N, D) to the nearest bfloat16 numbers."""
    halves = to_bf16(values).view("<u2").reshape(values.shape)
    return (halves.astype(np.uint32) << 16).view(np.float32)
