"""Blocks of 32 values with one scale, or a scale and a minimum: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0."""

from __future__ import annotations

from pellucid.kernels.matmul.file_layout import BitPlane, FileLayout, half
from pellucid.kernels.matmul.packed_layout import PackedLayout
from pellucid.weights.quant.format import Format

# Q4_0: value = d (q - 8).
#
# | 0..1   | 2..17                                                |
# | d: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |

Q4_0 = Format("Q4_0", PackedLayout("int", 4, zero_point=8), FileLayout(32, 18, (BitPlane(2, 4, 16),), (half(0),)))


# Q4_1: value = d q + m.
#
# | 0..1   | 2..3   | 4..19                                                |
# | d: f16 | m: f16 | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |

Q4_1 = Format(
    "Q4_1", PackedLayout("int", 4, minimum=True), FileLayout(32, 20, (BitPlane(4, 4, 16),), (half(0), half(2)))
)


# Q5_0: value = d (q - 16).
#
# | 0..1   | 2..5                         | 6..21                                                |
# | d: f16 | 32 fifth bits, little-endian | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |

Q5_0 = Format(
    "Q5_0",
    PackedLayout("int", 5, zero_point=16),
    FileLayout(32, 22, (BitPlane(6, 4, 16), BitPlane(2, 1, 1)), (half(0),)),
)


# Q5_1: value = d q + m.
#
# | 0..1   | 2..3   | 4..7                         | 8..23                                                |
# | d: f16 | m: f16 | 32 fifth bits, little-endian | 16 bytes: low nibbles q0..q15, high nibbles q16..q31 |

Q5_1 = Format(
    "Q5_1",
    PackedLayout("int", 5, minimum=True),
    FileLayout(32, 24, (BitPlane(8, 4, 16), BitPlane(4, 1, 1)), (half(0), half(2))),
)


# Q8_0: value = d q, q signed; packed as q + 128, unsigned, with a zero point of 128.
#
# | 0..1   | 2..33       |
# | d: f16 | 32 x int8 q |

Q8_0 = Format(
    "Q8_0", PackedLayout("int", 8, zero_point=128), FileLayout(32, 34, (BitPlane(2, 8, 32),), (half(0),), flip=0x80)
)
