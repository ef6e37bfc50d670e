"""Q8_0: value = d q, q signed; kept as q + 128, unsigned, with a zero point of 128.

| 0..1   | 2..33       |
| d: f16 | 32 x int8 q |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Fields, Format, stored_f16


def split(raw: NDArray[np.uint8]) -> Fields:
    return Fields((raw[..., 2:] ^ 0x80).reshape(len(raw), -1), (stored_f16(raw[..., :2]),))


Q8_0 = Format("Q8_0", 32, 34, Packed("int", 8, zero_point=128), split)
