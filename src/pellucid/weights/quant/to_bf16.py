"""Converts floats to pairs of bfloat16 numbers, for weights that are rounded when they are loaded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.matmul.bf16 import bits
from pellucid.kernels.matmul.file_layout import FileLayout
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

BF16_PAIRS = Format("BF16", PackedLayout("bf16_pairs", 16), FileLayout(2, 4))
"""Blocks of two consecutive numbers of a row."""


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round (N, D) float32 to pairs (N, D/2, 4) uint8; D is even."""
    return bits(values).view(np.uint8).reshape(len(values), -1, BF16_PAIRS.block_bytes)
