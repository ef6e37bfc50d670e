"""How quantised weights lie in files, as data: what a format of blocks is made of.

The kernel that packs is generated from this (``pack.py``), and the plain definition reads it (``weights/quant``). A
block covers as many columns as a scale unit of the packed layout does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BitPlane:
    """Some bits of every value of a block.

    From byte ``offset`` on lie runs of ``run`` bytes. The lowest ``bits`` of a run's bytes belong to the first ``run``
    values, the bits above them to the next ``run`` values, and so on; what is left of the values is in the next run.
    """

    offset: int
    bits: int
    run: int

    def place(self, value: int) -> tuple[int, int]:
        """Where a value's bits are: the byte of the block, and the lowest bit in it."""
        run, inside = divmod(value, self.run * 8 // self.bits)
        return self.offset + run * self.run + inside % self.run, inside // self.run * self.bits


@dataclass(frozen=True)
class BitField:
    """``bits`` bits of a byte of the block, from bit ``shift`` on."""

    byte: int
    shift: int
    bits: int


@dataclass(frozen=True)
class ScaleField:
    """Numbers that go with a block's values, each made of pieces, the lowest bits first; ``minus`` is taken off."""

    numbers: tuple[tuple[BitField, ...], ...]
    minus: int = 0


@dataclass(frozen=True)
class BlockLayout:
    """A block: ``values`` numbers in ``nbytes`` bytes.

    ``planes`` hold the values' bits, the lowest first; ``flip`` are bits that are stored the other way round.
    ``sides`` are in the order of ``Packed.sides``.
    """

    values: int
    nbytes: int
    planes: tuple[BitPlane, ...] = ()
    sides: tuple[ScaleField, ...] = ()
    flip: int = 0

    def __str__(self) -> str:
        return f"{self.values} in {self.nbytes} bytes"


def whole(byte: int, count: int = 1) -> ScaleField:
    """``count`` bytes from ``byte`` on, as they are."""
    return ScaleField(tuple((BitField(byte + i, 0, 8),) for i in range(count)))


def half(byte: int) -> ScaleField:
    """The float16 at ``byte``."""
    return ScaleField(((BitField(byte, 0, 8), BitField(byte + 1, 0, 8)),))
