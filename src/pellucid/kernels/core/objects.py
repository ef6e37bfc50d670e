"""The object files of this installation: one file for each target, with the most frequent kernels.

``make kernels`` writes the files (``packaging/build_kernels.py``); wheels contain the files of their system. An object
is found by its name, which contains the hash of the kernel's sources, so changed sources make it unreachable. Its
content is used only if it has the hash that the index states.

    magic         16 bytes
    count         uint32
    index         count entries, in the order of their names' digests: the digest of the name (16 bytes), the digest of
                  the content (16 bytes), offset and length of the compressed content (uint32 each)
    contents      zlib streams, one for each object
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from pellucid.kernels.core.definitions import ROOT
from pellucid.kernels.core.isa import target

FOLDER = ROOT / "objects"
SUFFIX = ".kernels"
_MAGIC = b"pellucid objects"
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<16s16sII")
_MAX_BYTES = 1 << 24  # maximum size of an object file
_DIGEST_BYTES = 16


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_DIGEST_BYTES]


class Objects:
    """The object files of one target. A missing or damaged file holds none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: dict[bytes, tuple[bytes, int, int]] = {}
        try:
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) == _MAGIC:
                    (count,) = _COUNT.unpack(file.read(_COUNT.size))
                    entries = _ENTRY.iter_unpack(file.read(count * _ENTRY.size))
                    self._index = {name: (digest, offset, length) for name, digest, offset, length in entries}
        except (OSError, struct.error):
            return

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
        digest, offset, length = entry
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                content = zlib.decompressobj().decompress(file.read(length), _MAX_BYTES)
        except (OSError, zlib.error):
            return None
        return content if _digest(content) == digest else None


def path_of(target_name: str) -> Path:
    """Return the path of a target's file."""
    return FOLDER / f"{target_name}{SUFFIX}"


@functools.cache
def _objects(path: Path) -> Objects:
    return Objects(path)


def installed() -> Objects:
    """Return the object files of this process's target. ``PELLUCID_COMPILE=1`` hides them, to compile all kernels."""
    hidden = os.environ.get("PELLUCID_COMPILE", "0") != "0"
    return _objects(FOLDER if hidden else path_of(target().name))


def write(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a file that holds objects by name. Equal contents make equal files."""
    entries, streams = [], []
    offset = len(_MAGIC) + _COUNT.size + len(contents) * _ENTRY.size
    for name, content in sorted((_digest(name.encode()), content) for name, content in contents.items()):
        stream = zlib.compress(content, 9)
        entries.append(_ENTRY.pack(name, _digest(content), offset, len(stream)))
        streams.append(stream)
        offset += len(stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((_MAGIC, _COUNT.pack(len(entries)), *entries, *streams)))
