"""The block formats as data, their sizes, and the unpacking of their blocks to integers.

The formats are at the end: blocks of 32 values (Q4_0 to Q8_0), K-quants (Q2_K to Q6_K), floats, and tables of floats
(IQ4_NL, IQ4_XS, MXFP4). ``weights/pack.py`` turns the integers into floats (``decode_blocks``), or packs the blocks for
the matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import UnsupportedModel
from pellucid.kernels.matmul.layouts import BitField, BitPlane, FileLayout, PackedLayout, ScaleField, half, whole
from pellucid.util.registry import discover

EXPONENTS = {
    "f32": ("<u4", 1 << 31, 0x7F800000),
    "f16": ("<u2", 1 << 15, 0x7C00),
    "bf16": ("<u2", 1 << 15, 0x7F80),
    "bf16_pairs": ("<u2", 1 << 15, 0x7F80),
}
"""For the kinds of packed floats: the dtype of the bits, the sign's bit, and the bits of infinity."""


class BlockFields(Struct, frozen=True):
    """Unpacked blocks: the integer of every value, and the scales and minima.

    ``values`` (N, D) uint8. ``scale_fields`` are (N, count) arrays, in the order and with the dtypes of
    ``PackedLayout.scale_fields``.
    """

    values: NDArray[np.uint8]
    scale_fields: tuple[NDArray[Any], ...]


class Format(Struct, frozen=True):
    """A stored block format: its name in GGUF, its packed layout, and its block layout."""

    name: str
    packed: PackedLayout
    stored: FileLayout

    @property
    def block(self) -> int:
        """Values per block."""
        return self.stored.values

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return self.stored.nbytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of a stored row of ``columns`` values."""
        return columns // self.block * self.block_bytes

    def damaged(self, raw: NDArray[np.uint8]) -> int | None:
        """The index of the first block with a number that is NaN or infinite. ``raw`` is (n, block_bytes) uint8."""
        found = []
        for bits, full in self._exponents(raw):
            if len(bits) and bits.max() >= full:
                found.append(int((bits >= full).argmax()))
        return min(found, default=None)

    def _exponents(self, raw: NDArray[np.uint8]) -> Iterator[tuple[NDArray[Any], int]]:
        """The bits of numbers of each block without the sign, and their least value in an infinite number or NaN."""
        if self.packed.is_float:
            dtype, sign, full = EXPONENTS[self.packed.kind]
            yield raw.reshape(-1).view(dtype) & (sign - 1), full
            return
        for (_, kind), field in zip(self.packed.scale_fields, self.stored.scale_fields, strict=True):
            for *_, last in field.numbers:
                if kind == "<f2":  # its last byte has the exponent
                    yield raw[:, last.byte] & 0x7F, 0x7C
                elif self.packed.scale == "e8m0":
                    yield raw[:, last.byte], 0xFD  # from 2^125 on, values overflow

    def fields(self, raw: NDArray[np.uint8]) -> BlockFields:
        """Unpack blocks of integers, (N, blocks, block_bytes) uint8."""
        values = np.full((*raw.shape[:2], self.block), self.stored.flip, np.uint8)
        below = 0
        for plane in self.stored.planes:
            size = self.block * plane.bits // 8
            runs = raw[..., plane.offset : plane.offset + size].reshape(*raw.shape[:2], -1, 1, plane.run)
            shifts = np.arange(0, 8, plane.bits, dtype=np.uint8)[:, None]
            bits = runs >> shifts & ((1 << plane.bits) - 1)
            values ^= bits.reshape(values.shape) << below
            below += plane.bits
        return BlockFields(values.reshape(len(raw), -1), tuple(self._scale_fields(raw)))

    def _scale_fields(self, raw: NDArray[np.uint8]) -> list[NDArray[Any]]:
        scale_fields = []
        for (_, kind), field in zip(self.packed.scale_fields, self.stored.scale_fields, strict=True):
            numbers = []
            for pieces in field.numbers:
                number, below = np.full(raw.shape[:2], -field.minus, np.int32), 0
                for piece in pieces:
                    bits = raw[..., piece.byte].astype(np.int32) >> piece.shift & ((1 << piece.bits) - 1)
                    number += bits << below
                    below += piece.bits
                numbers.append(number)
            integers = np.stack(numbers, axis=-1).astype("<u2" if kind == "<f2" else kind)
            scale_fields.append(integers.view(kind).reshape(len(raw), -1))
        return scale_fields


@functools.cache
def formats() -> Mapping[str, Format]:
    """Every format, by its name in GGUF. Raises TypeError: two files declare the same format."""
    return discover("pellucid.weights.quant", Format, lambda form: (form.name,))


def lookup(name: str, what: str) -> Format:
    """The format called ``name``.

    Raises UnsupportedModel: the format is not implemented. The message lists the implemented formats.
    """
    try:
        return formats()[name]
    except KeyError:
        known = ", ".join(sorted(formats()))
        raise UnsupportedModel(f"{what} is stored as {name}, which is not supported (known: {known})") from None


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
Q3_K_SCALES = ScaleField(
    tuple((BitField(96 + j % 8, j // 8 * 4, 4), BitField(104 + j % 4, j // 4 * 2, 2)) for j in range(16)), minus=32
)

Q3_K = Format(
    "Q3_K",
    PackedLayout("int", 3, zero_point=4, sub=16, super_scales=True, signed_scales=True),
    FileLayout(256, 110, (BitPlane(32, 2, 32), BitPlane(0, 1, 32)), (Q3_K_SCALES, half(108))),
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
K_SCALES = ScaleField(
    tuple((BitField(4 + j, 0, 6),) for j in range(4))
    + tuple((BitField(8 + j, 0, 4), BitField(j, 6, 2)) for j in range(4, 8))
)
K_MINIMA = ScaleField(
    tuple((BitField(8 + j, 0, 6),) for j in range(4))
    + tuple((BitField(8 + j, 4, 4), BitField(4 + j, 6, 2)) for j in range(4, 8))
)
K_SCALE_FIELDS = (K_SCALES, K_MINIMA, half(0), half(2))

Q4_K = Format(
    "Q4_K",
    PackedLayout("int", 4, minimum=True, minimum_sign=-1, super_scales=True),
    FileLayout(256, 144, (BitPlane(16, 4, 32),), K_SCALE_FIELDS),
)
Q5_K = Format(
    "Q5_K",
    PackedLayout("int", 5, minimum=True, minimum_sign=-1, super_scales=True),
    FileLayout(256, 176, (BitPlane(48, 4, 32), BitPlane(16, 1, 32)), K_SCALE_FIELDS),
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
IQ4_XS_SCALES = ScaleField(
    tuple((BitField(4 + j // 2, j % 2 * 4, 4), BitField(2 + j // 4, j % 4 * 2, 2)) for j in range(8)), minus=32
)

IQ4_NL = Format(
    "IQ4_NL", PackedLayout("int", 4, zero_point=128, table=TABLE), FileLayout(32, 18, (BitPlane(2, 4, 16),), (half(0),))
)
IQ4_XS = Format(
    "IQ4_XS",
    PackedLayout("int", 4, zero_point=128, super_scales=True, signed_scales=True, table=TABLE),
    FileLayout(256, 136, (BitPlane(8, 4, 16),), (IQ4_XS_SCALES, half(0))),
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
