"""K-quants: 256 values in sub-blocks whose scales are quantized: Q2_K to Q6_K."""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitField, BitPlane, FileLayout, ScaleField, half, whole
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

# Q2_K: 256 values in 16 sub-blocks of 16; value = d sc q - dmin m, sc and m of 4 bits.
#
# | 0..15                         | 16..79                                  | 80..81 | 82..83    |
# | sc, m: low and high nibbles   | 2 x 32 bytes: value 32 i + l of each    | d: f16 | dmin: f16 |
# |                               | half of 128 is in byte l, at bit 2 i    |        |           |

Q2_K = Format(
    "Q2_K",
    PackedLayout("int", 2, sub=16, minimum=True, minimum_sign=-1, super_scales=True, joined_scales=True),
    FileLayout(256, 84, (BitPlane(16, 2, 32),), (whole(0, 16), half(80), half(82))),
)


# Q3_K: 256 values in 16 sub-blocks of 16; value = d (sc - 32) (q - 4), sc of 6 bits.
#
#     | 0..31                       | 32..95                               | 96..107 s      | 108..109 |
#     | the upper bit: value 32 i+l | the lower two: value 32 i + l of     | 16 sc, 6 bits  | d: f16   |
#     | is in byte l, at bit i      | each half is in byte l, at bit 2 i   |                |          |
#
# The lower four bits of scale j are a nibble of s[j mod 8] (the high nibble for j >= 8). The upper two bits are in
# s[8 + j mod 4] at bit 2 (j div 4).

S = 96
SCALES = ScaleField(
    tuple((BitField(S + j % 8, j // 8 * 4, 4), BitField(S + 8 + j % 4, j // 4 * 2, 2)) for j in range(16)), minus=32
)

Q3_K = Format(
    "Q3_K",
    PackedLayout("int", 3, zero_point=4, sub=16, super_scales=True, signed_scales=True),
    FileLayout(256, 110, (BitPlane(32, 2, 32), BitPlane(0, 1, 32)), (SCALES, half(108))),
)


# Q4_K, Q5_K: 256 values in 8 sub-blocks of 32; value = d sc q - dmin m, sc and m of 6 bits.
#
#     Q4_K | 0..1   | 2..3      | 4..15 s                |                         | 16..143                     |
#     Q5_K | 0..1   | 2..3      | 4..15 s                | 16..47                  | 48..175                     |
#          | d: f16 | dmin: f16 | 8 sc and 8 m, 6 bits   | 32 bytes: the fifth bit | 4 x 32 bytes: sub-block 2i  |
#          |        |           |                        | of sub-block i is bit i | in the low nibbles, 2i+1 in |
#          |        |           |                        |                         | the high nibbles            |
#
# The twelve bytes s hold sc and m of sub-block j: for j < 4, sc = s[j] & 63 and m = s[j+4] & 63. For j >= 4, the low
# four bits are the nibbles of s[j+4] (sc low, m high), and the upper two bits are bits 6 and 7 of s[j-4] (sc) and s[j]
# (m).

Q4_K_S = 4
Q4_K_SCALES = ScaleField(
    tuple((BitField(Q4_K_S + j, 0, 6),) for j in range(4))
    + tuple((BitField(Q4_K_S + j + 4, 0, 4), BitField(Q4_K_S + j - 4, 6, 2)) for j in range(4, 8))
)
MINIMA = ScaleField(
    tuple((BitField(Q4_K_S + j + 4, 0, 6),) for j in range(4))
    + tuple((BitField(Q4_K_S + j + 4, 4, 4), BitField(Q4_K_S + j, 6, 2)) for j in range(4, 8))
)
SCALE_FIELDS = (Q4_K_SCALES, MINIMA, half(0), half(2))

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


# Q6_K: 256 values in 16 sub-blocks of 16; value = d sc (q - 32), sc a signed byte.
#
#     | 0..127        | 128..191        | 192..207     | 208..209 |
#     | 4 lower bits  | 2 upper bits    | 16 x int8 sc | d: f16   |
#
# In each half of 128 values, value 32 i + l (i < 4, l < 32) has its lower bits in byte 64 half + 32 (i mod 2) + l (the
# low nibble for i < 2, else the high nibble), and its upper bits in byte 32 half + l at bit 2 i.

Q6_K = Format(
    "Q6_K",
    PackedLayout("int", 6, zero_point=32, sub=16, super_scales=True, signed_scales=True),
    FileLayout(256, 210, (BitPlane(0, 4, 64), BitPlane(128, 2, 32)), (whole(192, 16), half(208))),
)
