"""Q4_K: 256 values in 8 sub-blocks of 32; value = d sc q - dmin m, sc and m of 6 bits.

    | 0..1   | 2..3      | 4..15                  | 16..143                                        |
    | d: f16 | dmin: f16 | 8 sc and 8 m, 6 bits   | 4 x 32 bytes: sub-block 2i in the low nibbles, |
    |        |           |                        | 2i+1 in the high ones                          |

The twelve bytes s: for j < 4, sc = s[j] & 63 and m = s[j+4] & 63; for j >= 4 the low four bits are the nibbles
of s[j+4] (sc low, m high), the upper two are bits 6 and 7 of s[j-4] (sc) and s[j] (m).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import Packed
from pellucid.weights.quant import Fields, Format, nibbles, stored_f16


def scales_and_minima(s: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(..., 12) bytes to (..., 8) scales and (..., 8) minima."""
    first, second, third = s[..., :4], s[..., 4:8], s[..., 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    return scales, minima


def split(raw: NDArray[np.uint8]) -> Fields:
    rows = len(raw)
    scales, minima = scales_and_minima(raw[..., 4:16])
    values = nibbles(raw[..., 16:].reshape(rows, -1, 4, 32))
    sides = (
        scales.reshape(rows, -1),
        minima.reshape(rows, -1),
        stored_f16(raw[..., :2]),
        stored_f16(raw[..., 2:4]),
    )
    return Fields(values.reshape(rows, -1), sides)


Q4_K = Format("Q4_K", 256, 144, Packed("int", 4, minimum=True, minimum_sign=-1, super_scales=True), split)
