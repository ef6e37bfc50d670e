"""Q4_K, Q5_K: 256 values in 8 sub-blocks of 32; value = d sc q - dmin m, sc and m of 6 bits.

    Q4_K | 0..1   | 2..3      | 4..15 s                |                         | 16..143                     |
    Q5_K | 0..1   | 2..3      | 4..15 s                | 16..47                  | 48..175                     |
         | d: f16 | dmin: f16 | 8 sc and 8 m, 6 bits   | 32 bytes: the fifth bit | 4 x 32 bytes: sub-block 2i  |
         |        |           |                        | of sub-block i is bit i | in the low nibbles, 2i+1 in |
         |        |           |                        |                         | the high nibbles            |

The twelve bytes s hold sc and m of sub-block j: for j < 4, sc = s[j] & 63 and m = s[j+4] & 63. For j >= 4, the low four
bits are the nibbles of s[j+4] (sc low, m high), and the upper two bits are bits 6 and 7 of s[j-4] (sc) and s[j] (m).
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitField, BitPlane, FileLayout, ScaleField, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

S = 4
SCALES = ScaleField(
    tuple((BitField(S + j, 0, 6),) for j in range(4))
    + tuple((BitField(S + j + 4, 0, 4), BitField(S + j - 4, 6, 2)) for j in range(4, 8))
)
MINIMA = ScaleField(
    tuple((BitField(S + j + 4, 0, 6),) for j in range(4))
    + tuple((BitField(S + j + 4, 4, 4), BitField(S + j, 6, 2)) for j in range(4, 8))
)
SCALE_FIELDS = (SCALES, MINIMA, half(0), half(2))

Q4_K = Format(
    "Q4_K",
    PackedLayout("int", 4, minimum=True, minimum_sign=-1, super_scales=True),
    FileLayout(256, 144, (BitPlane(16, 4, 32),), SCALE_FIELDS),
)
Q5_K = Format(
    "Q5_K",
    PackedLayout("int", 5, minimum=True, minimum_sign=-1, super_scales=True),
    FileLayout(256, 176, (BitPlane(48, 4, 32), BitPlane(16, 1, 32)), SCALE_FIELDS),
)
