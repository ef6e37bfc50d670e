"""A block format as data, its sizes, and the unpacking of its blocks to integers.

``weights/pack.py`` turns the integers into floats (``decode_blocks``), or packs the blocks for the matrix products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import UnsupportedModel
from pellucid.kernels.matmul.layouts import FileLayout, PackedLayout
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
