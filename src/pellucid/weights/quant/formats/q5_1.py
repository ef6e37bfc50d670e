"""Q5_1: value = d q + m.

| 0..1   | 2..3   | 4..7                         | 8..23                                                |
| d: f16 | m: f16 | 32 fifth bits, little-endian | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q5_1 = Format(
    "Q5_1",
    PackedLayout("int", 5, minimum=True),
    FileLayout(32, 24, (BitPlane(8, 4, 16), BitPlane(4, 1, 1)), (half(0), half(2))),
)
