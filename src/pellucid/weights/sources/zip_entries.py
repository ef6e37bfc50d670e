"""Copies an entry out of a zip archive that is not trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zipfile

_CHUNK = 1 << 20


def damages() -> tuple[type[Exception], ...]:
    """The errors that zipfile raises for damaged and for encrypted archives."""
    import struct
    import zipfile
    import zlib

    return zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError


def copy_entry(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, report: Callable[[int], None]
) -> None:
    """Copy an entry whose stated size the caller has checked. ``report`` gets the bytes so far.

    Raises:
        OSError: the target cannot be written.
        Exception: the archive is damaged (`damages`).
    """
    copied = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as stream, open(target, "wb") as out:
        # zipfile stops at the size that was checked, and compares the CRC at the end.
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
            copied += len(chunk)
            report(copied)
