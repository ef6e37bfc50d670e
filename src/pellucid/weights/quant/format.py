"""A block format, as data, and what follows from it: its size, and its blocks taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.matmul.block_layout import BlockLayout
from pellucid.kernels.matmul.packed_layout import PackedLayout


@dataclass(frozen=True)
class BlockFields:
    """Blocks taken apart: the integer of every value, and what it is scaled by.

    ``values`` (N, D) uint8. ``sides`` are (N, count) arrays, as ``PackedLayout.sides`` has them.
    """

    values: NDArray[np.uint8]
    sides: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Format:
    """A stored block format: its name in GGUF, its packed layout, and its blocks."""

    name: str
    packed: PackedLayout
    stored: BlockLayout

    @property
    def block(self) -> int:
        """Values of a block."""
        return self.stored.values

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.stored.nbytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of a stored row."""
        return columns // self.block * self.block_bytes

    def fields(self, raw: NDArray[np.uint8]) -> BlockFields:
        """Blocks of integers, (N, blocks, block_bytes), taken apart."""
        values = np.full((*raw.shape[:2], self.block), self.stored.flip, np.uint8)
        below = 0
        for plane in self.stored.planes:
            size = self.block * plane.bits // 8
            runs = raw[..., plane.offset : plane.offset + size].reshape(*raw.shape[:2], -1, 1, plane.run)
            shifts = np.arange(0, 8, plane.bits, dtype=np.uint8)[:, None]
            bits = runs >> shifts & ((1 << plane.bits) - 1)
            values ^= bits.reshape(values.shape) << below
            below += plane.bits
        return BlockFields(values.reshape(len(raw), -1), tuple(self._sides(raw)))

    def _sides(self, raw: NDArray[np.uint8]) -> list[NDArray[Any]]:
        sides = []
        for (_, kind), side in zip(self.packed.sides, self.stored.sides, strict=True):
            numbers = []
            for pieces in side.numbers:
                number, below = np.full(raw.shape[:2], -side.minus, np.int32), 0
                for piece in pieces:
                    bits = raw[..., piece.byte].astype(np.int32) >> piece.shift & ((1 << piece.bits) - 1)
                    number += bits << below
                    below += piece.bits
                numbers.append(number)
            integers = np.stack(numbers, axis=-1).astype("<u2" if kind == "<f2" else kind)
            sides.append(integers.view(kind).reshape(len(raw), -1))
        return sides
