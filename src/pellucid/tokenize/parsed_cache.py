"""An on-disk cache of parsed large vocabularies, next to the compiled kernels.

In: the bytes of a file, or of the part of the file that is parsed. Out: the arrays parsed from the bytes, if they are
cached. The name of an entry is a hash of the bytes and of the parsing code, so entries are never out of date. An entry
that is damaged, or that another user may have written (``util/trusted_files.py``), counts as missing. A failed write is
only a warning. The cache keeps the MAX_FILES most recently used entries.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pellucid.util.trusted_files import TrustedFolder

FOLDER = "tokenizers"
MAX_FILES = 32
# Minimum number of bytes of a cached file. Smaller files are parsed each time.
WORTH_CACHING = 1 << 17
Arrays = Mapping[str, memoryview]
"""Arrays by name. They are not NumPy arrays, because importing NumPy takes as long as reading an entry."""


@cache
def _code() -> bytes:
    """A hash of the Python files in this folder, which define how a vocabulary is parsed."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.digest()


def cache_name(*parts: bytes) -> str:
    """The name of the cache entry for the bytes ``parts``; the entry need not exist."""
    digest = hashlib.sha256(_code())
    for part in parts:
        digest.update(b"%d " % len(part))
        digest.update(part)
    return digest.hexdigest()[:40]


def read(place: str) -> Arrays | None:
    """The arrays of an entry; None if there is no entry."""
    content = TrustedFolder(FOLDER).read(place, used=True)
    if content is None:
        return None
    size = int.from_bytes(content[:8], "little")
    listed, numbers = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    return {name: numbers[start:stop].cast(form) for name, form, start, stop in listed}


def write(place: str, arrays: Arrays) -> None:
    """Write arrays to an entry; a failure is only a warning."""
    listed, parts, done = [], [], 0
    for name, array in arrays.items():
        parts.append(array.tobytes() + bytes(-array.nbytes % 8))
        listed.append((name, array.format, done, done + array.nbytes))
        done += len(parts[-1])
    head = json.dumps(listed).encode()
    head += b" " * (-len(head) % 8)
    content = b"".join([len(head).to_bytes(8, "little"), head, *parts])
    TrustedFolder(FOLDER).write(place, content, most=MAX_FILES)


def text_of(array: memoryview) -> str:
    """The text stored as an array of bytes."""
    return str(array, "utf-8")


def array_of(text: str) -> memoryview:
    """A text as an array of bytes."""
    return memoryview(text.encode())
