"""Reads and writes the small files of control vectors and probes: float arrays with metadata, in GGUF or safetensors.

The files are not trusted: lengths, types and shapes are checked, and a file holds no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.errors.messages import brief, reason, shown
from pellucid.weights.checkpoint import Tensor
from pellucid.weights.files import ModelFile
from pellucid.weights.gguf import open_gguf
from pellucid.weights.safetensors import read_table
from pellucid.weights.written import write_gguf, write_safetensors, written_floats

MAX_BYTES = 1 << 30  # of a control vector or probe
DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
ENDINGS = (".gguf", ".safetensors")


class StoredVectors(NamedTuple):
    """The arrays of a file by name, float32, and its metadata."""

    arrays: dict[str, NDArray[np.float32]]
    metadata: Mapping[str, Any]


def read_vectors(path: str | Path, most: int = MAX_BYTES) -> StoredVectors:
    """Read a file with at most ``most`` bytes of tensors. Its ending is ``.gguf`` or ``.safetensors``.

    Raises:
        FileFormatError: the file is damaged or too large, or an array does not hold finite floats.
        InvalidRequest: the ending is another.
    """
    path = Path(path)
    check_ending(path)
    if path.suffix == ".gguf":
        with open_gguf(path) as checkpoint:
            arrays = {
                name: _floats(path, tensor, checkpoint.data(name).tobytes())
                for name, tensor in _bounded(path, checkpoint.tensors, most).items()
            }
            return StoredVectors(arrays, dict(checkpoint.metadata))
    file = ModelFile(path)
    try:
        table, metadata = read_table(path, file)
        arrays = {
            name: _floats(path, tensor, file.read(tensor.offset, tensor.nbytes))
            for name, tensor in _bounded(path, table, most).items()
        }
    finally:
        file.close()
    return StoredVectors(arrays, metadata if isinstance(metadata, dict) else {})


def write_vectors(
    path: str | Path, arrays: Mapping[str, NDArray[np.float32]], metadata: Mapping[str, Any]
) -> None:
    """Write float32 arrays to a file, which must end with ``.gguf`` or ``.safetensors``.

    Raises:
        InvalidRequest: the file cannot be written, or the ending is another.
    """
    path = Path(path)
    check_ending(path)
    tensors = {name: written_floats(values) for name, values in arrays.items()}
    try:
        if path.suffix == ".gguf":
            write_gguf(path, metadata, tensors)
        else:
            write_safetensors(path, tensors, {name: str(value) for name, value in metadata.items()})
    except OSError as error:
        raise InvalidRequest(f"path={brief(str(path))}: cannot be written: {reason(error)}") from error


def check_ending(path: Path) -> None:
    """Raise InvalidRequest unless a file's name ends with one of ``ENDINGS``."""
    if path.suffix not in ENDINGS:
        raise InvalidRequest(f"path={brief(str(path))}: must end with {' or '.join(ENDINGS)}")


def _bounded(path: Path, tensors: Mapping[str, Tensor], most: int) -> Mapping[str, Tensor]:
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > most:
        raise FileFormatError(path, "file", f"has {size:,} bytes of tensors; the limit is {most:,}")
    return tensors


def _floats(path: Path, tensor: Tensor, raw: bytes) -> NDArray[np.float32]:
    field = f"tensor {shown(tensor.name)}"
    if (kind := DTYPES.get(tensor.format)) is None:
        raise FileFormatError(path, field, f"is {tensor.format}; it must be one of {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = np.frombuffer(raw, kind).astype(np.float32).reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise FileFormatError(path, field, "has a value that is not finite (NaN, or too large for float32)")
    return values
