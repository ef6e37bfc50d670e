"""Where things that outlive a process are kept: models, compiled kernels, vocabularies.

And how a file is written so that it is there as a whole, or not at all.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """The folder that holds everything kept between runs: ``PELLUCID_HOME``, or the user's cache folder."""
    chosen = os.environ.get("PELLUCID_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("pellucid", appauthor=False)


DIGEST_BYTES = 32


def read_whole(path: Path) -> bytes | None:
    """What was written to a file; None if it cannot be had, or is no longer what was written."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file at once, with its hash: another process sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_suffix(f".{os.getpid()}")
    staging.write_bytes(hashlib.sha256(content).digest() + content)
    os.replace(staging, path)
