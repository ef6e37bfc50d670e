"""Q6_K: 256 values in 16 sub-blocks of 16; value = d sc (q - 32), sc a signed byte.

    | 0..127        | 128..191        | 192..207     | 208..209 |
    | 4 lower bits  | 2 upper bits    | 16 x int8 sc | d: f16   |

In each half of 128 values, value 32 i + l (i < 4, l < 32) has its lower bits in byte 64 half + 32 (i mod 2) + l (the
low nibble for i < 2, else the high nibble), and its upper bits in byte 32 half + l at bit 2 i.
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half, whole
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

Q6_K = Format(
    "Q6_K",
    PackedLayout("int", 6, zero_point=32, sub=16, super_scales=True, signed_scales=True),
    FileLayout(256, 210, (BitPlane(0, 4, 64), BitPlane(128, 2, 32)), (whole(192, 16), half(208))),
)
