"""IQ4_NL: value = d t[q]. IQ4_XS: 256 values in 8 sub-blocks of 32; value = d (sc - 32) t[q], sc of 6 bits.

    IQ4_NL | 0..1   |                |               | 2..17                                                |
    IQ4_XS | 0..1   | 2..3 h         | 4..7 s        | 8..135                                               |
           | d: f16 | upper two bits | lower four    | for each 32, 16 bytes: low nibbles q0..q15, high     |
           |        | of sc 0..7     | of sc 0..7    | nibbles q16..q31                                     |

The entries of the table t are denser around zero, like weights. ``TABLE`` is t + 128, so its entries are unsigned
bytes.
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitField, BitPlane, FileLayout, ScaleField, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

TABLE = tuple(128 + t for t in (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
SCALES = ScaleField(
    tuple((BitField(4 + j // 2, j % 2 * 4, 4), BitField(2 + j // 4, j % 4 * 2, 2)) for j in range(8)),
    minus=32,
)

IQ4_NL = Format(
    "IQ4_NL",
    PackedLayout("int", 4, zero_point=128, table=TABLE),
    FileLayout(32, 18, (BitPlane(2, 4, 16),), (half(0),)),
)
IQ4_XS = Format(
    "IQ4_XS",
    PackedLayout("int", 4, zero_point=128, super_scales=True, signed_scales=True, table=TABLE),
    FileLayout(256, 136, (BitPlane(8, 4, 16),), (SCALES, half(0))),
)
