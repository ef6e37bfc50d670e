"""The layouts of quantized weights, described as data: blocks in files, and packed for the matrix products."""

from __future__ import annotations

from msgspec import Struct

# The block formats of quantized weights in files, described as data.
#
# The kernel that packs weights is generated from a ``FileLayout`` (``pack.py``), and the NumPy decoder reads it
# (``weights/quant``). A block covers the columns of one scale unit of the packed layout.


class BitPlane(Struct, frozen=True):
    """Some of the bits of every value of a block.

    Runs of ``run`` bytes start at byte ``offset``. The lowest ``bits`` of a run's bytes belong to the first ``run``
    values, the bits above them to the next ``run`` values, and so on. When the bytes of a run are full, the next run
    holds the following values.
    """

    offset: int
    bits: int
    run: int

    def place(self, value: int) -> tuple[int, int]:
        """Return the place of a value's bits: the byte of the block, and the lowest bit in this byte."""
        run, inside = divmod(value, self.run * 8 // self.bits)
        return self.offset + run * self.run + inside % self.run, inside // self.run * self.bits


class BitField(Struct, frozen=True):
    """``bits`` bits of a byte of the block, starting at bit ``shift``."""

    byte: int
    shift: int
    bits: int


class ScaleField(Struct, frozen=True):
    """Scales or minima of a block. A number is its joined bit fields, lowest bits first, minus ``minus``."""

    numbers: tuple[tuple[BitField, ...], ...]
    minus: int = 0


class FileLayout(Struct, frozen=True):
    """A block: ``values`` numbers in ``nbytes`` bytes.

    ``planes`` hold the values' bits, lowest first. The bits of ``flip`` are stored inverted. ``scale_fields`` are in
    the order of ``PackedLayout.scale_fields``.
    """

    values: int
    nbytes: int
    planes: tuple[BitPlane, ...] = ()
    scale_fields: tuple[ScaleField, ...] = ()
    flip: int = 0

    def __str__(self) -> str:
        return f"{self.values} in {self.nbytes} bytes"


def whole(byte: int, count: int = 1) -> ScaleField:
    """Return the field of ``count`` 8-bit numbers that start at ``byte``."""
    return ScaleField(tuple((BitField(byte + i, 0, 8),) for i in range(count)))


def half(byte: int) -> ScaleField:
    """Return the field of the float16 at ``byte``."""
    return ScaleField(((BitField(byte, 0, 8), BitField(byte + 1, 0, 8)),))


# The layout of packed weights: 16 rows are interleaved, so that a vector holds the same columns of 16 rows.
#
# A matrix of N rows is divided into groups of 16. A group is contiguous, so a thread reads it front to back:
#
#     quantized   | planes of block 0 | planes of block 1 | ... | scales of unit 0 | scales of unit 1 | ...
#     float       | column 0 of the 16 rows | column 1 | ...
#     pairs       | columns 0 and 1 of row 0, then of the other rows | columns 2 and 3 | ...
#
# A *block* is 32 columns: eight vectors of 16 rows x 4 columns. A 32-bit lane is one row, and byte c of lane r of
# vector i is column 4i+c of row r. A *plane* stores b bits of all values of a block in b 64-byte vectors. The bits of
# vector i of the block are in vector i // (8/b) of the plane, in every byte from bit b * (i mod (8/b)) on. Values of 2,
# 4 and 8 bits have one plane. Values of 3 bits have a plane of the lower 2 bits, then a plane of the third bit. Values
# of 5 and 6 bits have a plane of the lower 4 bits, then a plane of the upper 1 or 2 bits.
#
# A scale *unit* covers 32 columns or, with "super-scales", 256 columns. It holds the following numbers in this order,
# each number for 16 rows side by side:
#
#   with super-scales: an 8-bit scale for each ``sub`` columns; with minima, then an 8-bit minimum for each ``sub``
#                      columns. If scales and minima have 4 bits, one byte holds both, with the scale in the lower bits
#   a scale; with minima, then a minimum: f16, or a power of two as e8m0
#
#     value = scale * (q - zero_point)            or            scale * q + minimum
#
# With super-scales, scale and minimum are the products of the 8-bit numbers and the unit's numbers. With a ``table``, q
# is the table's entry for the stored 4 bits. An e8m0 byte e stands for 2^(e - 128), half of its value in the OCP
# specification, because ggml doubles the table's values. e = 255, which is NaN in the specification, is infinity.
#
# The zero point costs no operation per weight: a product subtracts ``zero_point`` times the sum of the activations.

ROWS = 16
BLOCK = 32
SUPER = 256
VECTOR = 64


def round_up(n: int, multiple: int) -> int:
    """Return the smallest multiple of ``multiple`` that is not below ``n``."""
    return -(-n // multiple) * multiple


class PackedLayout(Struct, frozen=True, cache_hash=True):
    """A packed layout, described as data. Kernels are generated from it.

    ``kind`` is "int" for quantized values, whose ``bits`` are 2 to 6 or 8, and "f16", "bf16", "bf16_pairs" or "f32" for
    floats, whose ``bits`` are 16 or 32. ``zero_point`` is zero or a power of two. ``sub`` is the number of columns that
    share a scale (32 or 16). With ``super_scales``, units are 256 columns with 8-bit scales. ``signed_scales`` is true
    if the 8-bit scales are signed, and ``joined_scales`` if a scale and its minimum share a byte. ``minimum`` is true
    if there are minima; ``minimum_sign`` is the factor of a stored minimum. ``scale`` is the type of a unit's own
    scale, "f16" or "e8m0". ``table`` holds the 16 unsigned bytes that 4-bit values map to; it is empty if values are
    not mapped.
    """

    kind: str
    bits: int
    zero_point: int = 0
    sub: int = BLOCK
    minimum: bool = False
    minimum_sign: int = 1
    super_scales: bool = False
    signed_scales: bool = False
    joined_scales: bool = False
    scale: str = "f16"
    table: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}{self.bits}" if self.kind == "int" else self.kind

    @property
    def is_float(self) -> bool:
        """True if values are stored as floating point. Activations are then not quantized."""
        return self.kind != "int"

    @property
    def number_values(self) -> int:
        """Number of values that are packed as one number: 2 for pairs."""
        return 2 if self.kind == "bf16_pairs" else 1

    @property
    def unit(self) -> int:
        """Number of columns of a scale unit. The number of columns of a matrix is a multiple of this number."""
        if self.is_float:
            return 1
        return SUPER if self.super_scales else BLOCK

    @property
    def max_byte(self) -> int:
        """Largest unsigned byte that stands for a quantized value in a product."""
        return max(self.table) if self.table else (1 << self.bits) - 1

    @property
    def planes(self) -> tuple[int, ...]:
        """Number of bits of a value in each plane, with the plane of the lowest bits first."""
        low = 1 << (self.bits.bit_length() - 1)
        return (low, self.bits - low) if self.bits > low else (low,)

    @property
    def plane_bytes(self) -> int:
        """Bytes of the planes of one block (16 rows x 32 columns)."""
        return ROWS * BLOCK * self.bits // 8

    @property
    def scale_fields(self) -> tuple[tuple[int, str], ...]:
        """The scales and minima of one row in a unit, in order: (count, NumPy dtype)."""
        if self.is_float:
            return ()
        kinds = 2 if self.minimum else 1
        small = (SUPER // self.sub, "i1" if self.signed_scales else "u1")
        first = (small,) * (1 if self.joined_scales else kinds) if self.super_scales else ()
        return (*first, *[(1, {"f16": "<f2", "e8m0": "u1"}[self.scale])] * kinds)

    @property
    def factors_at(self) -> int:
        """Byte offset in a unit of its own scales, which follow the 8-bit scales of 16 rows."""
        return ROWS * sum(count for count, _ in self.scale_fields if count > 1)

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales and minima of one unit for 16 rows."""
        return ROWS * sum(count * int(kind[-1]) for count, kind in self.scale_fields)

    def group_bytes(self, columns: int) -> int:
        """Bytes of 16 rows of ``columns`` columns."""
        if self.is_float:
            return ROWS * columns * self.bits // 8
        scales = columns // self.unit * self.scale_bytes
        return columns // BLOCK * self.plane_bytes + round_up(scales, VECTOR)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a whole matrix; rows are padded to a multiple of 16."""
        return round_up(rows, ROWS) // ROWS * self.group_bytes(columns)
