"""Q4_0: value = d (q - 8).

| 0..1   | 2..17                                                |
| d: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q4_0 = Format(
    "Q4_0", PackedLayout("int", 4, zero_point=8), FileLayout(32, 18, (BitPlane(2, 4, 16),), (half(0),))
)
