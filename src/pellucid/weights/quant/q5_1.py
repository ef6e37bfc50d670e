"""Q5_1: value = d q + m.

| 0..1   | 2..3   | 4..7                         | 8..23                                                |
| d: f16 | m: f16 | 32 fifth bits, little-endian | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Plane, Stored, half
from pellucid.weights.quant import Format

Q5_1 = Format(
    "Q5_1",
    Packed("int", 5, minimum=True),
    Stored(32, 24, (Plane(8, 4, 16), Plane(4, 1, 1)), (half(0), half(2))),
)
