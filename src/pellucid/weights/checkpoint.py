"""The interface of an opened model, independent of its file format."""

from __future__ import annotations

import math
import os
import stat
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from pellucid.errors import FileFormatError, reason, shown

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


# Files that are open for reading, and the checkpoint class that both formats share.
#
# In: paths. Out: `ModelFile`, one regular file open for reading, and `FileCheckpoint`, which reads tensors' bytes from
# these files. Bytes are read on demand, so the time to open a model does not depend on its size.
#
# Files are read, not mapped into memory: if a mapped file is shortened, the system kills the process (SIGBUS), and
# other changes remain unnoticed. With reads, a file that ends too early or is modified while it is loaded raises an
# error.

_MAX_READ = 1 << 30  # bytes


class ModelFile:
    """One regular file, open for reading. Several threads may read from it.

    Attributes: ``path``; ``size`` in bytes.

    Raises FileFormatError: the path is missing, empty, unreadable or not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            # Check before opening: opening a named pipe may block, and a device has no length.
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                problem = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
                raise FileFormatError(path, "file", problem)
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # the file stays open
            self._opened = os.fstat(self._file.fileno())
        except FileNotFoundError:
            raise FileFormatError(path, "file", f"there is no file at {path}") from None
        except (OSError, ValueError) as error:
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(path, "file", f"cannot be read: {reason(error)}") from error
        self.size = self._opened.st_size
        if self.size == 0:
            self.close()
            raise FileFormatError(path, "file", "is empty", 0)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return ``nbytes`` bytes from ``offset`` on. Raises `FileFormatError` if the file is shorter or unreadable."""
        data = bytearray(nbytes)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``offset`` on. Raises like `read`."""
        filled = 0
        try:
            while filled < len(out):
                count = self._read_some(offset + filled, out[filled:])
                if count == 0:
                    problem = f"changed while it was read: expected {len(out):,} bytes, found {filled:,}"
                    raise FileFormatError(self.path, "file", problem, offset)
                filled += count
        except OSError as error:
            raise FileFormatError(self.path, "file", f"cannot be read: {reason(error)}", offset) from error

    def _read_some(self, offset: int, out: memoryview) -> int:
        if hasattr(os, "preadv"):
            # macOS refuses to read more than 2 GiB at once.
            count: int = os.preadv(self._file.fileno(), [out[:_MAX_READ]], offset)
            return count
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(out) or 0

    @property
    def facts(self) -> tuple[str, int, int, int]:
        """The path, the size, the time of the last change (ns) and the inode, when the file was opened."""
        own = self._opened
        return os.path.realpath(self.path), own.st_size, own.st_mtime_ns, own.st_ino

    def check_unchanged(self) -> None:
        """Raise `FileFormatError` if the file was modified since it was opened."""
        before, now = self._opened, os.fstat(self._file.fileno())
        if (before.st_size, before.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
            how = f"{now.st_size:,} bytes instead of {before.st_size:,}"
            what = how if before.st_size != now.st_size else "it was written to"
            raise FileFormatError(self.path, "file", f"changed while it was read: {what}; try again")

    def close(self) -> None:
        """Close the file. Without a call, the file is closed when the object is deleted."""
        if hasattr(self, "_file"):
            self._file.close()

    __del__ = close


class FileCheckpoint:
    """A `Checkpoint` over files; usable as a context manager."""

    def __init__(
        self,
        kind: str,
        path: Path,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        files: Mapping[Path, ModelFile],
    ) -> None:
        self.kind, self.path, self.metadata, self.tensors, self.files = kind, path, metadata, tensors, files

    def data(self, name: str) -> NDArray[np.uint8]:
        import numpy as np

        tensor = self.tensors.get(name)
        if tensor is None:
            raise FileFormatError(self.path, f"tensor {shown(name)}", "is not in this file")
        data = np.empty(tensor.nbytes, np.uint8)
        self.read(name, 0, data)
        data.flags.writeable = False
        return data

    def read(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        tensor = self.tensors[name]
        if len(out):
            self.files[tensor.path].read_into(tensor.offset + start, out.data)

    def file_facts(self) -> list[tuple[str, int, int, int]]:
        return sorted(file.facts for file in self.files.values())

    def check_unchanged(self) -> None:
        for file in self.files.values():
            file.check_unchanged()

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def __enter__(self) -> FileCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
