"""The folders of a pull that is not finished, and the lock of a model."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pellucid.errors import DownloadInterrupted
from pellucid.util.paths import file_lock, home, make_folder
from pellucid.weights.sources.source import DownloadProgress


@contextlib.contextmanager
def staging(name: str) -> Iterator[tuple[Path, Path]]:
    """The folders ``scratch`` and ``target`` of a pull of the model ``name``; both are removed at the end.

    After an interruption, ``scratch`` remains for the next pull. The caller holds the model's lock.
    """
    folder = home() / "staging" / name
    target, scratch = folder / "model", folder / "scratch"
    shutil.rmtree(target, ignore_errors=True)  # left by a process that was killed
    make_folder(target)
    make_folder(scratch)
    keeps = False
    try:
        yield scratch, target
    except (DownloadInterrupted, KeyboardInterrupt) as error:
        keeps = any(path.is_file() for path in scratch.rglob("*"))
        if keeps and isinstance(error, DownloadInterrupted):
            raise DownloadInterrupted(f"{error}; the same command continues the download") from error
        raise
    finally:
        shutil.rmtree(target if keeps else folder, ignore_errors=True)


@contextlib.contextmanager
def locked(name: str, progress: DownloadProgress) -> Iterator[None]:
    """Hold the lock of a model. Waits while another process holds it. Raises OSError."""
    path = home() / "locks" / f"{name}.lock"
    waiting = f"{name}: waiting for another process that pulls it"
    with file_lock(path, lambda: progress.update(0, None, waiting)):
        yield
