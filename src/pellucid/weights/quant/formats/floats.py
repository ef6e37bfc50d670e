"""Floats and tables of floats: F32, F16, BF16, IQ4_NL, IQ4_XS, MXFP4."""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitField, BitPlane, FileLayout, ScaleField, half, whole
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

# F32, F16, BF16: plain floating point, one value per block.

F32 = Format("F32", PackedLayout("f32", 32), FileLayout(1, 4))
F16 = Format("F16", PackedLayout("f16", 16), FileLayout(1, 2))
BF16 = Format("BF16", PackedLayout("bf16", 16), FileLayout(1, 2))


# IQ4_NL: value = d t[q]. IQ4_XS: 256 values in 8 sub-blocks of 32; value = d (sc - 32) t[q], sc of 6 bits.
#
#     IQ4_NL | 0..1   |                |               | 2..17                                                |
#     IQ4_XS | 0..1   | 2..3 h         | 4..7 s        | 8..135                                               |
#            | d: f16 | upper two bits | lower four    | for each 32, 16 bytes: low nibbles q0..q15, high     |
#            |        | of sc 0..7     | of sc 0..7    | nibbles q16..q31                                     |
#
# The entries of the table t are denser around zero, like weights. ``TABLE`` is t + 128, so its entries are unsigned
# bytes.

TABLE = tuple(128 + t for t in (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
SCALES = ScaleField(
    tuple((BitField(4 + j // 2, j % 2 * 4, 4), BitField(2 + j // 4, j % 4 * 2, 2)) for j in range(8)), minus=32
)

IQ4_NL = Format(
    "IQ4_NL", PackedLayout("int", 4, zero_point=128, table=TABLE), FileLayout(32, 18, (BitPlane(2, 4, 16),), (half(0),))
)
IQ4_XS = Format(
    "IQ4_XS",
    PackedLayout("int", 4, zero_point=128, super_scales=True, signed_scales=True, table=TABLE),
    FileLayout(256, 136, (BitPlane(8, 4, 16),), (SCALES, half(0))),
)


# MXFP4 (OCP Microscaling 1.0): floating-point numbers of 4 bits (E2M1); value = 2^(e - 128) t[q].
#
# | 0          | 1..16                                                |
# | e: 8 bits  | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |
#
# The entries of the table t are the E2M1 values multiplied by 2, as in ggml: 0, 1, 2, 3, 4, 6, 8, 12 and their
# negatives. ``TABLE`` is t + 16. In the specification, e = 255 means NaN. Here it makes the scale infinite: the values
# of the block are infinite, or NaN where t[q] = 0.

MXFP4_TABLE = tuple(16 + t for t in (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))

MXFP4 = Format(
    "MXFP4",
    PackedLayout("int", 4, zero_point=16, scale="e8m0", table=MXFP4_TABLE),
    FileLayout(32, 17, (BitPlane(1, 4, 16),), (whole(0),)),
)
