"""Q4_1: value = d q + m.

| 0..1   | 2..3   | 4..19                                              |
| d: f16 | m: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Fields, Format, nibbles, stored_f16


def split(raw: NDArray[np.uint8]) -> Fields:
    sides = (stored_f16(raw[..., :2]), stored_f16(raw[..., 2:4]))
    return Fields(nibbles(raw[..., 4:]).reshape(len(raw), -1), sides)


Q4_1 = Format("Q4_1", 32, 20, Packed("int", 4, minimum=True), split)
