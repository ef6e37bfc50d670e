"""Q5_0: value = d (q - 16).

| 0..1   | 2..5                         | 6..21                                                |
| d: f16 | 32 fifth bits, little-endian | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Plane, Stored, half
from pellucid.weights.quant import Format

Q5_0 = Format(
    "Q5_0",
    Packed("int", 5, zero_point=16),
    Stored(32, 22, (Plane(6, 4, 16), Plane(2, 1, 1)), (half(0),)),
)
