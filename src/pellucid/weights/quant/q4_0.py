"""Q4_0: value = d (q - 8).

| 0..1   | 2..17                                              |
| d: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Fields, Format, nibbles, stored_f16


def split(raw: NDArray[np.uint8]) -> Fields:
    return Fields(nibbles(raw[..., 2:]).reshape(len(raw), -1), (stored_f16(raw[..., :2]),))


Q4_0 = Format("Q4_0", 32, 18, Packed("int", 4, zero_point=8), split)
