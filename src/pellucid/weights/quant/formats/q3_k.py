"""Q3_K: 256 values in 16 sub-blocks of 16; value = d (sc - 32) (q - 4), sc of 6 bits.

    | 0..31                       | 32..95                               | 96..107 s      | 108..109 |
    | the upper bit: value 32 i+l | the lower two: value 32 i + l of     | 16 sc, 6 bits  | d: f16   |
    | is in byte l, at bit i      | each half is in byte l, at bit 2 i   |                |          |

The lower four bits of scale j are a nibble of s[j mod 8] (the high nibble for j >= 8). The upper two bits are in
s[8 + j mod 4] at bit 2 (j div 4).
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitField, BitPlane, FileLayout, ScaleField, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

S = 96
SCALES = ScaleField(
    tuple((BitField(S + j % 8, j // 8 * 4, 4), BitField(S + 8 + j % 4, j // 4 * 2, 2)) for j in range(16)),
    minus=32,
)

Q3_K = Format(
    "Q3_K",
    PackedLayout("int", 3, zero_point=4, sub=16, super_scales=True, signed_scales=True),
    FileLayout(256, 110, (BitPlane(32, 2, 32), BitPlane(0, 1, 32)), (SCALES, half(108))),
)
