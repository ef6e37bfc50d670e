"""The block formats of quantized weights in files, described as data.

The kernel that packs weights is generated from a ``FileLayout`` (``pack.py``), and the NumPy decoder reads it
(``weights/quant``). A block covers the columns of one scale unit of the packed layout.
"""

from __future__ import annotations

from msgspec import Struct


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
