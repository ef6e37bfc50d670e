"""The interface of an opened model, independent of its file format."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Tensor(Struct, frozen=True):
    """One stored tensor: its position in a file and its encoding.

    ``shape`` is in row-major (NumPy) order, so a matrix that maps D inputs to N outputs is (N, D).
    ``format`` is the name of a block format of ``weights/quant`` ("F32", "Q4_1", ...).
    ``offset`` and ``nbytes`` are bytes in ``path``.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    path: Path
    offset: int
    nbytes: int


class Checkpoint(Protocol):
    """An opened model: metadata, a table of tensors and their bytes.

    ``kind`` is "gguf" or "safetensors". ``metadata`` is the GGUF key/value table, or the contents of
    ``config.json``. ``path`` is the opened file, or the opened folder with config and tokenizer files.
    """

    kind: str
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return the tensor's bytes: (nbytes,) uint8, read-only. Raises `FileFormatError` if they cannot be read."""
        ...

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out``, (n,) uint8, with the tensor's bytes from ``start`` on. Raises like ``data``."""
        ...

    def file_facts(self) -> list[tuple[str, int, int, int]]:
        """The path, size, time of the last change (ns) and inode of each open file, in order of the paths."""
        ...

    def check_unchanged(self) -> None:
        """Raise `FileFormatError` if a file was modified since the checkpoint was opened."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def stored_bytes(checkpoint: Checkpoint) -> int:
    """Number of bytes of all tensors."""
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def main_format(checkpoint: Checkpoint) -> str:
    """The format of most of the bytes of the tensors; "" if there are none."""
    formats = Counter[str]()
    for tensor in checkpoint.tensors.values():
        formats[tensor.format] += tensor.nbytes
    return formats.most_common(1)[0][0] if formats else ""


def parameter_count(checkpoint: Checkpoint) -> int:
    """Number of values of all tensors."""
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
