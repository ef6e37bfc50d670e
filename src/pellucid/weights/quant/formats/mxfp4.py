"""MXFP4 (OCP Microscaling 1.0): floating-point numbers of 4 bits (E2M1); value = 2^(e - 128) t[q].

| 0          | 1..16                                                |
| e: 8 bits  | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |

The entries of the table t are the E2M1 values multiplied by 2, as in ggml: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives.
``TABLE`` is t + 16. In the specification, e = 255 means NaN. Here it makes the scale infinite: the values of the block
are infinite, or NaN where t[q] = 0.
"""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, whole
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

TABLE = tuple(16 + t for t in (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12))

MXFP4 = Format(
    "MXFP4",
    PackedLayout("int", 4, zero_point=16, scale="e8m0", table=TABLE),
    FileLayout(32, 17, (BitPlane(1, 4, 16),), (whole(0),)),
)
