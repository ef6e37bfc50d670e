"""The interface of a source, which modules of ``schemes/`` declare as ``SOURCE``, and of progress callbacks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Protocol

CHECKING = "checking "  # prefix of the label while a local file is hashed


class DownloadProgress(Protocol):
    """Progress callback of a download. Called often, from the calling thread or a downloader's."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """``done_bytes`` of ``total_bytes`` (None: unknown) of ``label`` are done.

        A label that begins with `CHECKING` means that a local file is being hashed.
        """
        ...


class Silent:
    """A `DownloadProgress` that does nothing."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        pass


class Source(ABC):
    """One place that models come from."""

    scheme: ClassVar[str]

    @abstractmethod
    def cached(self, rest: str) -> Path | None:
        """The path of what ``rest`` names, or None if this source does not have it on this machine. Uses no network."""
        ...

    @abstractmethod
    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        """Fetch the file or folder that ``rest`` names, at most ``limit`` bytes, and return its path.

        ``scratch`` is a folder of the caller's. The caller may move a path inside it; any other path belongs to the
        source's own cache. Raises `SourceError` with the reason in one line.
        """
        ...
