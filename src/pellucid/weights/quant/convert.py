"""Converts floats to pairs of bfloat16 numbers or to Q8_0 blocks, for weights that are converted when they are
loaded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.matmul.file_layout import FileLayout
from pellucid.kernels.matmul.floats import bf16_bits
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format
from pellucid.weights.quant.formats.simple import Q8_0

# Converts floats to pairs of bfloat16 numbers, for weights that are rounded when they are loaded.

BF16_PAIRS = Format("BF16", PackedLayout("bf16_pairs", 16), FileLayout(2, 4))
"""Blocks of two consecutive numbers of a row."""


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round (N, D) float32 to pairs (N, D/2, 4) uint8; D is even."""
    return bf16_bits(values).view(np.uint8).reshape(len(values), -1, BF16_PAIRS.block_bytes)


# Converts floats to Q8_0 blocks, for weights that are quantized when they are loaded.

MAX_INTEGER = 127


def to_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantize (N, D) float32 to blocks (N, D/32, 34) uint8; D is a multiple of 32.

    d = max |x| / 127 of the block, rounded to float16; q = round(x / d), ties to even. d is NaN if a value of the block
    is not finite or too large for float16, so that results show it.
    """
    blocks = values.reshape(len(values), -1, Q8_0.block)
    raw = np.empty((*blocks.shape[:2], Q8_0.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        scale = (np.abs(blocks).max(-1) * np.float32(1 / MAX_INTEGER)).astype(np.float16)
        finite = np.isfinite(scale)
        step = np.where(finite, scale, 0).astype(np.float32)
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
        # A rounded scale may be a little smaller than max |x| / 127.
        integers = np.clip(np.rint(blocks * inverse[..., None]), -MAX_INTEGER, MAX_INTEGER)
        integers[~finite] = 0
    raw[..., :2] = np.where(finite, scale, np.float16(np.nan))[..., None].view(np.uint8)
    raw[..., 2:] = integers.astype(np.int8).view(np.uint8)
    return raw
