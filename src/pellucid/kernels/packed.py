"""How weights lie in memory: 16 rows interleaved, so that a vector holds the same column of 16 rows.

A matrix of N rows is cut into groups of 16. A group is one run of bytes, so a thread reads it front to back:

    quantised   | planes of block 0 | planes of block 1 | ... | scales of unit 0 | scales of unit 1 | ...
    float       | column 0 of the 16 rows | column 1 | ...

A *block* is 32 columns. Its first plane holds 16 rows x 4 columns in each 64-byte vector (a 32-bit lane is one
row): eight vectors of 8-bit values, or four of 4-bit values whose low nibbles are columns 8j..8j+3 and whose
high nibbles are columns 8j+4..8j+7. A 5-bit value keeps its fifth bit, and a 6-bit value its upper two, in a
second plane: byte c of a lane holds them for column 4i+c at bit i (or bits 2i, 2i+1 of vector i div 4).

A scale *unit* covers 32 columns (one f16 scale, perhaps one f16 minimum, for each row) or 256 (for each
sub-block one 8-bit scale and perhaps minimum a row, then one f16 factor for each, the "super-scales" of K-quants).

    value = scale * (q - zero_point)            or            scale * q + minimum

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
class Packed:
    """One packed layout, as data. Kernels are generated from it.

    ``bits`` is 4, 5, 6 or 8 for quantised values; 16 and 32 with ``kind`` "f16", "bf16", "f32" for floats.
    ``sub`` is the number of columns that share a scale (32 or 16); ``super_scales`` says that units are 256
    columns with 8-bit scales (``signed_scales`` tells their sign); ``minimum`` that there are minima;
    ``minimum_sign`` is what the stored minimum is multiplied by.
    """

    kind: str
    bits: int
    zero_point: int = 0
    sub: int = BLOCK
    minimum: bool = False
    minimum_sign: int = 1
    super_scales: bool = False
    signed_scales: bool = False

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
    def plane_bytes(self) -> int:
        """Bytes of one block's planes (16 rows x 32 columns)."""
        return ROWS * BLOCK * self.bits // 8

    @property
    def scale_bytes(self) -> int:
        """Bytes of one unit's scales for 16 rows."""
        if self.is_float:
            return 0
        kinds = 2 if self.minimum else 1
        per_row = kinds * 2 + (kinds * SUPER // self.sub if self.super_scales else 0)
        return ROWS * per_row

    def group_bytes(self, columns: int) -> int:
        """Bytes of 16 rows of ``columns`` columns."""
        if self.is_float:
            return ROWS * columns * self.bits // 8
        scales = columns // self.unit * self.scale_bytes
        return columns // BLOCK * self.plane_bytes + round_up(scales, VECTOR)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a whole matrix; rows are padded to a multiple of 16."""
        return round_up(rows, ROWS) // ROWS * self.group_bytes(columns)
