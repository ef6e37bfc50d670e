"""Q5_0: value = d (q - 16).

| 0..1   | 2..5                          | 6..21                                             |
| d: f16 | 32 fifth bits, little-endian  | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Fields, Format, nibbles, stored_f16


def split(raw: NDArray[np.uint8]) -> Fields:
    fifth = np.unpackbits(raw[..., 2:6], axis=-1, bitorder="little")
    values = nibbles(raw[..., 6:]) | (fifth << 4)
    return Fields(values.reshape(len(raw), -1), (stored_f16(raw[..., :2]),))


Q5_0 = Format("Q5_0", 32, 22, Packed("int", 5, zero_point=16), split)
