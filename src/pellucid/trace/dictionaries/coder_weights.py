"""The contents of a file with a sparse coder: hooks, matrices, activation function, rows of the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.dictionaries.activations import FeatureActivation
from pellucid.trace.dictionaries.array_files import FLOATS, SafetensorsArrays, check_shape, finite, take
from pellucid.weights.pack import decode_blocks, stored_as

# The decoder: a vector for each feature and each point that the feature writes to, (F, O, D) float32.

IN_MEMORY = 1 << 29
"""Maximum bytes of a decoder that is kept in memory. Vectors of larger decoders are read from the file on demand."""


class DecoderRows(Protocol):
    """The vectors of features. ``shape`` is (F, O, D)."""

    shape: tuple[int, int, int]

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some features, (n, O, D). Raises FileFormatError if the file changed or has NaN."""


class ArrayRows:
    """A decoder in memory, (F, O, D)."""

    def __init__(self, values: NDArray[np.float32]) -> None:
        self._values = values
        self.shape: tuple[int, int, int] = values.shape

    def rows(self, features: NDArray[np.int64]) -> NDArray[np.float32]:
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
        return self._decoder.rows(features) * self._factors[features, None, None]


def decoder_of(file: SafetensorsArrays, name: str, F: int, outputs: int | None, first: int = 0) -> DecoderRows:
    """The decoder in an array (F, D), or (F, O', D) with ``outputs`` O'. Outputs before ``first`` are left out.

    Raises:
        FileFormatError: the array is missing, has another shape, or has NaN or infinite values.
    """
    shape = (F, None) if outputs is None else (F, outputs, None)
    check_shape(file, name, shape)
    if 4 * math.prod(file.shapes[name]) > IN_MEMORY and len(shape) == 3 and file.tensor(name).format in FLOATS:
        return FileRows(file, name, first)
    return ArrayRows(np.ascontiguousarray(take(file, name, shape).reshape(F, outputs or 1, -1)[:, first:]))


# The contents of a file with a sparse coder: hooks, matrices, activation function and normalisation.

Values = NDArray[np.float32]
MOST_FEATURES = 1 << 24


class CoderWeights(Struct, frozen=True, kw_only=True):
    """A sparse coder: activations of F features from a vector (D,), and a reconstruction from the activations.

        before = (normalised x - input_bias) · encoderᵀ + encoder_bias          (F,)
        output j = activation(before) · decoder[:, j] + decoder_bias + skip · x (the last two: j = 0 only)

    It ``reads`` the values of one hook, and ``writes`` values of a hook for each output of the decoder. The first is
    the hook that it reads in an SAE. ``normalization`` is a name in ``NORMALIZATIONS`` or "none".
    """

    path: Path
    reads: str
    writes: tuple[str, ...]
    encoder: Values
    encoder_bias: Values
    decoder: DecoderRows
    decoder_bias: Values
    activation: FeatureActivation
    input_bias: Values | None = None
    skip: Values | None = None
    normalization: str = "none"


class Given(Struct, frozen=True):
    """Facts that the user states beside the files: hooks (None: not stated), and the factor of the inputs."""

    reads: str | None = None
    writes: str | None = None
    input_scale: float | None = None

    def hooks(self, path: Path, reads: str | None, writes: str | None, *, transcodes: bool = False) -> tuple[str, str]:
        """The hooks that a coder reads and writes, as the user or the file states them.

        Raises:
            InvalidRequest: nobody states what the coder reads, or what a transcoder writes.
        """
        reads = self.reads or reads
        if not reads:
            raise InvalidRequest(
                f"{path.name}: the file does not say which values it reads: give reads='blocks.5.hook_resid_post' or "
                "another hook or point, and for a transcoder also writes="
            )
        writes = self.writes or writes
        if transcodes and not writes:
            raise InvalidRequest(
                f"{path.name}: the file does not say which values the transcoder writes: give "
                "writes='blocks.5.hook_mlp_out' or another hook or point"
            )
        return reads, writes or reads


class DictionaryFormat(Struct, frozen=True):
    """A format of files. ``find`` returns the main file of a dictionary in a file or folder of this format, or None.

    ``read`` returns its kind ("SAE", "transcoder", …) and its coders.
    """

    name: str
    find: Callable[[Path], Path | None]
    read: Callable[[Path, Given], tuple[str, Sequence[CoderWeights]]]
