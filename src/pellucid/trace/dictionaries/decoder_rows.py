"""The decoder: a vector for each feature and each point that the feature writes to, (F, O, D) float32."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.dictionaries.array_files import FLOATS, SafetensorsArrays, check_shape, finite, take
from pellucid.weights.pack import decode_blocks, stored_as

IN_MEMORY = 1 << 29
"""Maximum bytes of a decoder that is kept in memory. Vectors of larger decoders are read from the file on demand."""


class DecoderRows(Protocol):
    """The vectors of features. ``shape`` is (F, O, D)."""

    shape: tuple[int, int, int]

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some features, (n, O, D). Raises FileFormatError if the file changed or has NaN."""
        ...


class ArrayRows:
    """A decoder in memory, (F, O, D)."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values
        self.shape: tuple[int, int, int] = values.shape

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        """As in ``DecoderRows``."""
        return self._values[features]


class FileRows:
    """A decoder in a safetensors file, (F, O', D). The outputs before ``first`` are left out."""

    def __init__(self, file: SafetensorsArrays, name: str, first: int) -> None:
        F, outputs, D = file.shapes[name]
        self.shape = (F, outputs - first, D)
        self._file, self._name, self._first = file, name, first
        self._form, (_, blocks, block_bytes) = stored_as(file.tensor(name))
        self._row_bytes = blocks * block_bytes

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        """As in ``DecoderRows``."""
        _, outputs, D = self.shape
        raw = np.empty((len(features), outputs * self._row_bytes), np.uint8)
        for number, out in zip(features.tolist(), raw):
            start = (number * (self._first + outputs) + self._first) * self._row_bytes
            self._file.checkpoint.read(self._name, start, out)
        blocks = raw.reshape(len(features) * outputs, -1, self._form.block_bytes)
        values = decode_blocks(self._form, blocks).reshape(len(features), outputs, D)
        return finite(self._file.path, self._name, values)


class ScaledRows:
    """The vectors of ``decoder``, each multiplied by the factor of its feature in ``factors`` (F,)."""

    def __init__(self, decoder: DecoderRows, factors: NDArray[np.float32]) -> None:
        self._decoder, self._factors, self.shape = decoder, factors, decoder.shape

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        """As in ``DecoderRows``."""
        return self._decoder.rows(features) * self._factors[features, None, None]


def decoder_of(
    file: SafetensorsArrays, name: str, F: int, outputs: int | None, first: int = 0
) -> DecoderRows:
    """The decoder in an array (F, D), or (F, O', D) with ``outputs`` O'. Outputs before ``first`` are left out.

    Raises:
        FileFormatError: the array is missing, has another shape, or has NaN or infinite values.
    """
    shape = (F, None) if outputs is None else (F, outputs, None)
    check_shape(file, name, shape)
    if (
        4 * math.prod(file.shapes[name]) > IN_MEMORY
        and len(shape) == 3
        and file.tensor(name).format in FLOATS
    ):
        return FileRows(file, name, first)
    return ArrayRows(np.ascontiguousarray(take(file, name, shape).reshape(F, outputs or 1, -1)[:, first:]))
