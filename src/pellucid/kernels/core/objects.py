"""The object files of this installation: one file for each target, with the most frequent kernels.

``make kernels`` writes the files (``packaging/build_kernels.py``); wheels contain the files of their system. An object
is found by its name, which contains the hash of the kernel's sources, so changed sources make it unreachable. Its
content is used only if it has the hash that the index states.

    magic         16 bytes
    count         uint32
    index         count entries, in the order of their names' digests: the digest of the name (16 bytes), the digest of
                  the content (16 bytes), offset and length of a group (uint32 each), offset and length of the object in
                  the group after decompression (uint32 each)
    groups        LZMA streams of several objects with similar code, which take a third of the bytes of single streams
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from pellucid.errors import KernelError
from pellucid.kernels.core.definitions import ROOT
from pellucid.kernels.core.fingerprint import compiles_all
from pellucid.kernels.core.isa import target

FOLDER = ROOT / "objects"
SUFFIX = ".kernels"
_MAGIC = b"pellucid objects"
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<16s16sIIII")
_GROUP_BYTES = 200_000  # a group ends when it has this size: decompression takes 2 ms
_MAX_BYTES = 1 << 24  # maximum size of a group
_DIGEST_BYTES = 16


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_DIGEST_BYTES]


class Objects:
    """The object files of one target. A missing or damaged file holds none; ``is_damaged`` tells them apart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: dict[bytes, tuple[bytes, int, int, int, int]] = {}
        self.is_damaged = False
        self._last: tuple[int, bytes] = (0, b"")  # the group that was decompressed last, and its offset
        try:
            with path.open("rb") as file:
                self.is_damaged = file.read(len(_MAGIC)) != _MAGIC
                if not self.is_damaged:
                    (count,) = _COUNT.unpack(file.read(_COUNT.size))
                    entries = _ENTRY.iter_unpack(file.read(count * _ENTRY.size))
                    self._index = {name: place for name, *place in entries}  # type: ignore[misc]
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return
        except (OSError, struct.error):
            self.is_damaged = True

    def __len__(self) -> int:
        return len(self._index)

    def has(self, name: str) -> bool:
        """True if there is an object with this name."""
        return _digest(name.encode()) in self._index

    def read(self, name: str) -> bytes | None:
        """Return an object file; None if there is no object with this name, or if it is damaged."""
        entry = self._index.get(_digest(name.encode()))
        if entry is None:
            return None
        digest, offset, length, start, size = entry
        if self._last[0] != offset:
            self._last = (offset, self._group(offset, length))
        content = self._last[1][start : start + size]
        return content if _digest(content) == digest else None

    def _group(self, offset: int, length: int) -> bytes:
        """Return the objects of a group, one after the other; nothing if the group is damaged.

        Raises:
            KernelError: this Python has no LZMA.
        """
        try:
            from lzma import LZMADecompressor, LZMAError
        except ImportError as error:
            raise KernelError(
                "this Python was built without the module lzma, which reads the installed kernels: use another "
                "Python, or set PELLUCID_COMPILE=1 after pip install 'pellucid[compile]'"
            ) from error
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                return LZMADecompressor().decompress(file.read(length), _MAX_BYTES)
        except (OSError, LZMAError, EOFError):
            return b""


def path_of(target_name: str) -> Path:
    """Return the path of a target's file."""
    return FOLDER / f"{target_name}{SUFFIX}"


@functools.cache
def _objects(path: Path) -> Objects:
    return Objects(path)


def installed() -> Objects:
    """Return the object files of this process's target. ``PELLUCID_COMPILE=1`` hides them, to compile all kernels."""
    return _objects(FOLDER if compiles_all() else path_of(target().name))


def write(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a file that holds objects by name. Neighbours should have similar code. Equal contents make equal files."""
    import lzma

    entries: list[tuple[bytes, bytes, int, int, int, int]] = []
    streams: list[bytes] = []
    offset = len(_MAGIC) + _COUNT.size + len(contents) * _ENTRY.size
    for group in _groups(contents):
        stream, start = lzma.compress(b"".join(contents[name] for name in group), preset=9), 0
        for name in group:
            size = len(contents[name])
            digests = _digest(name.encode()), _digest(contents[name])
            entries.append((*digests, offset, len(stream), start, size))
            start += size
        streams.append(stream)
        offset += len(stream)
    index = [_ENTRY.pack(*entry) for entry in sorted(entries)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((_MAGIC, _COUNT.pack(len(entries)), *index, *streams)))


def _groups(contents: Mapping[str, bytes]) -> Iterator[list[str]]:
    """Yield groups of neighbours whose names begin with the name of the same kernel."""
    group: list[str] = []
    for name in contents:
        alike = not group or name.partition("-")[0] == group[0].partition("-")[0]
        if not alike or sum(len(contents[one]) for one in group) > _GROUP_BYTES:
            yield group
            group = []
        group.append(name)
    if group:
        yield group
