"""What reading a large vocabulary came to, kept beside the compiled kernels, so that it is parsed once.

In: a file's bytes. Out: the arrays that were made of them, if they were kept. The name under which they are is a hash
of these very bytes and of the code that read them, so nothing that is found is ever out of date; what is damaged, not
this user's (``pellucid/util/private.py``), or cannot be written, is as if it were not there. The last few are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pellucid.util.private import Folder

FOLDER = "tokenizers"
MOST_FILES = 16
WORTH_CACHING = 1 << 17  # bytes of what would have to be parsed
Arrays = Mapping[str, memoryview]
"""Numbers by name. Not NumPy's, whose import takes as long as all that is read here."""


@cache
def _code() -> bytes:
    """A hash of the files of this folder that say how a vocabulary is read."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.digest()


def cache_name(data: bytes) -> str:
    """The name under which the arrays of these bytes are, or would be."""
    return hashlib.sha256(_code() + data).hexdigest()[:40]


def read(place: str) -> Arrays | None:
    """The arrays that are kept at a place; None if there are none."""
    content = Folder(FOLDER).read(place, used=True)
    if content is None:
        return None
    size = int.from_bytes(content[:8], "little")
    listed, numbers = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    return {name: numbers[start:stop].cast(form) for name, form, start, stop in listed}


def write(place: str, arrays: Arrays) -> None:
    """Keep arrays at a place, if it can be written to."""
    listed, parts, done = [], [], 0
    for name, array in arrays.items():
        parts.append(array.tobytes() + bytes(-array.nbytes % 8))
        listed.append((name, array.format, done, done + array.nbytes))
        done += len(parts[-1])
    head = json.dumps(listed).encode()
    head += b" " * (-len(head) % 8)
    whole = b"".join([len(head).to_bytes(8, "little"), head, *parts])
    Folder(FOLDER).write(place, whole, most=MOST_FILES)


def text_of(array: memoryview) -> str:
    """A text that was kept as an array of bytes."""
    return str(array, "utf-8")


def array_of(text: str) -> memoryview:
    """A text as an array of bytes."""
    return memoryview(text.encode())
