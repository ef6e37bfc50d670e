"""Q4_1: value = d q + m.

| 0..1   | 2..3   | 4..19                                                |
| d: f16 | m: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Plane, Stored, half
from pellucid.weights.quant import Format

Q4_1 = Format("Q4_1", Packed("int", 4, minimum=True), Stored(32, 20, (Plane(4, 4, 16),), (half(0), half(2))))
