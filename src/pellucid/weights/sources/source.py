"""The interface of a source (the modules of ``schemes/`` declare it as ``SOURCE``) and of progress callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Protocol

CHECKING = "checking "  # prefix of the label while a local file is hashed


class DownloadProgress(Protocol):
    """Progress callback of a download. Called often, from the calling thread or from a downloader's thread."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """Report that ``done_bytes`` of ``total_bytes`` (None: unknown) of ``label`` are done.

        A label that begins with `CHECKING` means that a local file is being hashed.
        """
        ...


class Silent:
    """A `DownloadProgress` that does nothing."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        pass


class Source(ABC):
    """A source of models."""

    scheme: ClassVar[str]

    @abstractmethod
    def cached(self, rest: str) -> Path | None:
        """The path of the file or folder ``rest`` if this source has it on this machine, else None. Uses no network."""
        ...

    @abstractmethod
    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        """Fetch the file or folder ``rest``, at most ``limit`` bytes, and return its path.

        ``scratch`` is the caller's folder. The caller may move a path inside it; any other path belongs to the source's
        own cache. Raises `SourceError` with the reason in one line.
        """
        ...
