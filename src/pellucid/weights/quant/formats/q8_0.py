"""Q8_0: value = d q, q signed; packed as q + 128, unsigned, with a zero point of 128.

| 0..1   | 2..33       |
| d: f16 | 32 x int8 q |
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q8_0 = Format(
    "Q8_0",
    PackedLayout("int", 8, zero_point=128),
    FileLayout(32, 34, (BitPlane(2, 8, 32),), (half(0),), flip=0x80),
)
