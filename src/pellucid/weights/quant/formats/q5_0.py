"""Q5_0: value = d (q - 16).

| 0..1   | 2..5                         | 6..21                                                |
| d: f16 | 32 fifth bits, little-endian | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q5_0 = Format(
    "Q5_0",
    PackedLayout("int", 5, zero_point=16),
    FileLayout(32, 22, (BitPlane(6, 4, 16), BitPlane(2, 1, 1)), (half(0),)),
)
