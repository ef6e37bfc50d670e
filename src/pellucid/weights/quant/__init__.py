"""Block formats: how weights are stored in files, one file a format.

Each module holds one or more ``Format``s. A format is data: how the bits of a block's values and scales lie in a file
(``kernels/stored.py``), and what the packed layout is that keeps them without loss (``kernels/packed.py``). Everything
else (decoding, packing, the matrix products) follows from those.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import UnsupportedModel
from pellucid.kernels.packed import Packed
from pellucid.kernels.stored import Stored


@dataclass(frozen=True)
class Fields:
    """Blocks taken apart: the integer of every value, and what it is scaled by.

    ``values`` (N, D) uint8. ``sides`` are (N, count) arrays, as ``Packed.sides`` has them.
    """

    values: NDArray[np.uint8]
    sides: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Format:
    """A stored block format: its name in GGUF, its packed layout, and its blocks."""

    name: str
    packed: Packed
    stored: Stored

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

    def fields(self, raw: NDArray[np.uint8]) -> Fields:
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
        return Fields(values.reshape(len(raw), -1), tuple(self._sides(raw)))

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


@functools.cache
def formats() -> Mapping[str, Format]:
    """Every format in this folder, by its name in GGUF."""
    found: dict[str, Format] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Format):
                found[value.name] = value
    return found


def lookup(name: str, what: str) -> Format:
    """The format of that name.

    Raises:
        UnsupportedModel: it is not implemented; lists those that are.
    """
    try:
        return formats()[name]
    except KeyError:
        known = ", ".join(sorted(formats()))
        raise UnsupportedModel(
            f"{what} is stored as {name}, which is not supported (known: {known})"
        ) from None
