"""Q8_0: value = d q, q signed; kept as q + 128, unsigned, with a zero point of 128.

| 0..1   | 2..33       |
| d: f16 | 32 x int8 q |
"""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Plane, Stored, half
from pellucid.weights.quant import Format

Q8_0 = Format(
    "Q8_0",
    Packed("int", 8, zero_point=128),
    Stored(32, 34, (Plane(2, 8, 32),), (half(0),), flip=0x80),
)
