"""How weights lie in memory: 16 rows interleaved, so that a vector holds the same column of 16 rows.

A matrix of N rows is cut into groups of 16. A group is one run of bytes, so a thread reads it front to back:

    quantised   | planes of block 0 | planes of block 1 | ... | scales of unit 0 | scales of unit 1 | ...
    float       | column 0 of the 16 rows | column 1 | ...

A *block* is 32 columns: eight vectors of 16 rows x 4 columns, where a 32-bit lane is one row, and byte c of lane r of
vector i is row r's column 4i+c. Of values of b bits, a *plane* of b 64-byte vectors holds all eight: vector i is in
the plane's vector i // (8/b), in the b bits of every byte from bit b * (i mod (8/b)) on. Values of 2, 4 and 8 bits
have one plane. Those of 3 bits have a plane of the lower 2 and then one of the third, those of 5 and 6 bits a plane of
the lower 4 and then one of the upper 1 or 2.

A scale *unit* covers 32 columns or, with "super-scales", 256. It holds for each of its numbers the 16 rows side by
side, in this order:

    with super-scales: an 8-bit scale of each ``sub`` columns, then, with minima, an 8-bit minimum of each; or one byte
                       for both, where they have 4 bits each, the scale in the lower ones
    a scale, then, with minima, a minimum: f16, or a power of two as e8m0

    value = scale * (q - zero_point)            or            scale * q + minimum

where, with super-scales, scale and minimum are the products of the small number and the unit's. With a ``table`` q is
the table's entry of the stored 4 bits. An e8m0 byte e stands for 2^(e - 128): half of what the OCP specification
gives it, as ggml doubles the values; e = 255, there no number, is infinity.

The zero point costs nothing: it is folded into the integer sum with the activations' own sum.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 16
BLOCK = 32
SUPER = 256
VECTOR = 64


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``n``."""
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class PackedLayout:
    """One packed layout, as data. Kernels are generated from it.

    ``bits`` is 2 to 6 or 8 for quantised values; 16 and 32 with ``kind`` "f16", "bf16", "f32" for floats.
    ``zero_point`` is zero or a power of two. ``sub`` is the number of columns that share a scale (32 or 16);
    ``super_scales`` says that units are 256 columns with 8-bit scales (``signed_scales`` tells their sign,
    ``joined_scales`` that scale and minimum share a byte); ``minimum`` that there are minima; ``minimum_sign`` is
    what the stored minimum is multiplied by; ``scale`` is how a unit's own scale is stored, "f16" or "e8m0".
    ``table`` are the 16 unsigned bytes that values of 4 bits stand for, if they do not stand for themselves.
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
        """Whether values are stored as floating point, so that activations need not be quantised."""
        return self.kind != "int"

    @property
    def unit(self) -> int:
        """Columns that a scale unit covers; the number of columns must be a multiple of it."""
        if self.is_float:
            return 1
        return SUPER if self.super_scales else BLOCK

    @property
    def most(self) -> int:
        """The largest of the unsigned bytes that stand for quantised values in a product."""
        return max(self.table) if self.table else (1 << self.bits) - 1

    @property
    def planes(self) -> tuple[int, ...]:
        """The bits of a value that each plane holds, the lowest first."""
        low = 1 << (self.bits.bit_length() - 1)
        return (low, self.bits - low) if self.bits > low else (low,)

    @property
    def plane_bytes(self) -> int:
        """Bytes of one block's planes (16 rows x 32 columns)."""
        return ROWS * BLOCK * self.bits // 8

    @property
    def sides(self) -> tuple[tuple[int, str], ...]:
        """What a unit holds for a row besides its values: (how many, the type as NumPy calls it)."""
        if self.is_float:
            return ()
        kinds = 2 if self.minimum else 1
        small = (SUPER // self.sub, "i1" if self.signed_scales else "u1")
        first = (small,) * (1 if self.joined_scales else kinds) if self.super_scales else ()
        return (*first, *[(1, {"f16": "<f2", "e8m0": "u1"}[self.scale])] * kinds)

    @property
    def factors_at(self) -> int:
        """Where in a unit its own scales are, behind the 8-bit ones of 16 rows."""
        return ROWS * sum(count for count, _ in self.sides if count > 1)

    @property
    def scale_bytes(self) -> int:
        """Bytes of one unit's scales for 16 rows."""
        return ROWS * sum(count * int(kind[-1]) for count, kind in self.sides)

    def group_bytes(self, columns: int) -> int:
        """Bytes of 16 rows of ``columns`` columns."""
        if self.is_float:
            return ROWS * columns * self.bits // 8
        scales = columns // self.unit * self.scale_bytes
        return columns // BLOCK * self.plane_bytes + round_up(scales, VECTOR)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a whole matrix; rows are padded to a multiple of 16."""
        return round_up(rows, ROWS) // ROWS * self.group_bytes(columns)
