"""A stored model is hashed when its files were written to, and under the lock of its pull."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from pellucid.errors import FileFormatError
from pellucid.weights import catalogue as catalogue_module
from pellucid.weights.catalogue import CatalogueFile, CatalogueModel
from pellucid.weights.store import resolve, verify

CONTENT = b"first half, " * 999 + b"second half" * 999
DAMAGED = b"something else".ljust(len(CONTENT))


@pytest.fixture
def path(store_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the stored model "tiny", the only model of the catalogue."""
    origin = tmp_path / "origin.gguf"
    origin.write_bytes(CONTENT)
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = CatalogueFile("tiny.gguf", len(CONTENT), digest, ((f"local:{origin}",),))
    model = CatalogueModel("tiny", "A test", "CC0", (), (file,))
    monkeypatch.setattr(catalogue_module, "catalogue", lambda: {"tiny": model})
    return resolve("tiny")


def damage_quietly(path: Path) -> None:
    """Change bytes in place, without a change of size, times and inode."""
    status = path.stat()
    path.write_bytes(DAMAGED)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_is_hashed_if_it_was_written_to_and_only_once(path: Path) -> None:
    """Quiet damage shows only if another change makes the file be hashed."""
    copy = path.with_name("copy")
    for change in (
        lambda: None,
        lambda: os.utime(path, ns=(1, 1_000_000_001)),
        lambda: (copy.write_bytes(CONTENT), os.utime(copy, ns=(1, 1_000_000_001)), os.replace(copy, path)),
        lambda: path.write_bytes(CONTENT),
    ):
        change()
        assert resolve("tiny") == path
        damage_quietly(path)
        assert resolve("tiny") == path, "its record was brought up to date"
        os.utime(path)
        with pytest.raises(FileFormatError, match="is damaged"):
            resolve("tiny")
        path.write_bytes(CONTENT)


def test_a_model_is_verified_under_the_lock(store_home: Path, path: Path) -> None:
    waits = threading.Event()

    class Waiting:
        def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
            if label == "tiny: waiting for another process that pulls it":
                waits.set()

    lock = FileLock(store_home / "locks" / "tiny.lock")
    with ThreadPoolExecutor(1) as pool:
        with lock:
            verified = pool.submit(verify, "tiny", progress=Waiting())
            assert waits.wait(30)
            assert not verified.done()
        assert verified.result(30).ok
