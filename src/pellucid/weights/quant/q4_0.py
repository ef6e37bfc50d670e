"""Q4_0: value = d (q - 8).

| 0..1   | 2..17                                                |
| d: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Plane, Stored, half
from pellucid.weights.quant import Format

Q4_0 = Format("Q4_0", Packed("int", 4, zero_point=8), Stored(32, 18, (Plane(2, 4, 16),), (half(0),)))
