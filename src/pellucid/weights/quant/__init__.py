"""Block formats: how weights are stored in files, one file a format.

Each module holds one or more ``Format``s. A format says how many values and bytes a block has, what the packed
layout is that keeps it without loss (``kernels/packed.py``), and how to split blocks into the fields of that
layout. Everything else (decoding, packing, the matrix products) follows from those.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import UnsupportedModel
from pellucid.kernels.packed import Packed


@dataclass(frozen=True)
class Fields:
    """Blocks taken apart: the integer of every value, and what it is scaled by.

    ``values`` (N, D) uint8. ``sides`` are (N, count) arrays in the packed layout's order: 8-bit scales, 8-bit
    minima, f16 scales, f16 minima, as far as the layout has them.
    """

    values: NDArray[Any]
    sides: tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Format:
    """A stored block format.

    ``split`` takes a block's bytes, (N, blocks, block_bytes) uint8, to ``Fields``; None for floats.
    """

    name: str
    block: int
    block_bytes: int
    packed: Packed
    split: Callable[[NDArray[np.uint8]], Fields] | None = None

    def row_bytes(self, columns: int) -> int:
        """Bytes of a stored row."""
        return columns // self.block * self.block_bytes


def stored_f16(raw: NDArray[np.uint8]) -> NDArray[np.float16]:
    """(..., 2) bytes as (...) float16."""
    return np.ascontiguousarray(raw).view("<f2")[..., 0]


def nibbles(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) bytes to (..., 2n): all low nibbles, then all high ones."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


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
