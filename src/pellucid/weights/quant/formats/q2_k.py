"""Q2_K: 256 values in 16 sub-blocks of 16; value = d sc q - dmin m, sc and m of 4 bits.

| 0..15                         | 16..79                                  | 80..81 | 82..83    |
| sc, m: low and high nibbles   | 2 x 32 bytes: value 32 i + l of each    | d: f16 | dmin: f16 |
|                               | half of 128 is in byte l, at bit 2 i    |        |           |
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half, whole
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q2_K = Format(
    "Q2_K",
    PackedLayout("int", 2, sub=16, minimum=True, minimum_sign=-1, super_scales=True, joined_scales=True),
    FileLayout(256, 84, (BitPlane(16, 2, 32),), (whole(0, 16), half(80), half(82))),
)
