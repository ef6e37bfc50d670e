"""Q4_1: value = d q + m.

| 0..1   | 2..3   | 4..19                                                |
| d: f16 | m: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q4_1 = Format(
    "Q4_1",
    PackedLayout("int", 4, minimum=True),
    FileLayout(32, 20, (BitPlane(4, 4, 16),), (half(0), half(2))),
)
