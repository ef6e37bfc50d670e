"""Q6_K: 256 values in 16 sub-blocks of 16; value = d sc (q - 32), sc a signed byte.

    | 0..127        | 128..191        | 192..207     | 208..209 |
    | 4 lower bits  | 2 upper bits    | 16 x int8 sc | d: f16   |

In each half of 128 values, value 32 i + l (i < 4, l < 32) has its lower bits in byte 64 half + 32 (i mod 2) + l,
the low nibble for i < 2, else the high one, and its upper bits in byte 32 half + l at bit 2 i.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Fields, Format, nibbles, stored_f16


def split(raw: NDArray[np.uint8]) -> Fields:
    rows = len(raw)
    low = nibbles(raw[..., :128].reshape(rows, -1, 2, 64))  # (..., 128): i in order 0, 1, 2, 3
    high: NDArray[Any] = raw[..., 128:192].reshape(rows, -1, 2, 1, 32)
    shift = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((high >> shift) & 3).reshape(low.shape)
    scales = raw[..., 192:208].reshape(rows, -1).view(np.int8)
    return Fields((low | (high << 4)).reshape(rows, -1), (scales, stored_f16(raw[..., 208:210])))


Q6_K = Format(
    "Q6_K", 256, 210, Packed("int", 6, zero_point=32, sub=16, super_scales=True, signed_scales=True), split
)
