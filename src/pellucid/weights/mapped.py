"""Files mapped into memory, and the checkpoint that both formats come out as.

In: paths. Out: `MappedFile`, one regular file mapped read-only, and `MappedCheckpoint`, which hands out
tensors' bytes as views of such maps. Nothing is read before it is used and nothing is copied, so opening
a model costs the same whatever its size, and several processes share one copy of the weights.

A file must not be shortened while it is mapped: the system then ends the process (SIGBUS). The store never
writes into a finished file, it replaces files.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import FileFormatError
from pellucid.messages import reason, shown
from pellucid.weights.checkpoint import Tensor


class MappedFile:
    """One regular file, mapped read-only.

    Attributes: ``path``; ``map``, the mapped bytes, which can be sliced like ``bytes``; ``size`` in bytes.
    Raises `FileFormatError` when the path is missing, empty, unreadable or not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A named pipe or a device would block on open or has no length, so look before opening.
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                problem = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
                raise FileFormatError(path, "file", problem)
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise FileFormatError(path, "file", "is empty", 0)
                self.map = mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise FileFormatError(path, "file", f"there is no file at {shown(str(path))}") from None
        except (OSError, ValueError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error

    def view(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Bytes ``[offset, offset + nbytes)``, in the file: (nbytes,) uint8, a read-only view."""
        return np.frombuffer(self.map, dtype=np.uint8, count=nbytes, offset=offset)

    def release(self, offset: int, nbytes: int) -> None:
        """Give back the pages that lie wholly in ``[offset, offset + nbytes)``, where the system takes them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                self.map.madvise(mmap.MADV_DONTNEED, first, length)

    def close(self) -> None:
        """Unmap. While arrays still view the map it stays, and goes away with the last of them."""
        with contextlib.suppress(BufferError):
            self.map.close()


class MappedCheckpoint:
    """A `Checkpoint` over mapped files; usable as a context manager."""

    def __init__(
        self,
        kind: str,
        path: Path,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        files: Mapping[Path, MappedFile],
    ) -> None:
        self.kind, self.path, self.metadata, self.tensors = kind, path, metadata, tensors
        self._files = files

    def data(self, name: str) -> NDArray[np.uint8]:
        """Its bytes: (nbytes,) uint8, a read-only view. Raises `FileFormatError` for unknown names."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FileFormatError(self.path, f"tensor {shown(name)}", "is not in this file")
        if tensor.nbytes == 0:
            return np.empty(0, np.uint8)
        return self._files[tensor.path].view(tensor.offset, tensor.nbytes)

    def release(self, name: str, start: int, nbytes: int) -> None:
        """Give back the memory that holds ``nbytes`` of its bytes from ``start`` on."""
        tensor = self.tensors[name]
        self._files[tensor.path].release(tensor.offset + start, nbytes)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> MappedCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
