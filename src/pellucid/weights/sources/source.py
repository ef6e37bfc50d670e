"""A source of model files: what a module of ``schemes/`` declares as ``SOURCE``, and what watches it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Protocol

CHECKING = "checking "  # how a label begins that is not of something fetched


class DownloadProgress(Protocol):
    """What a caller passes in to watch. Called often, from the calling thread or a downloader's."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        """``done_bytes`` of ``total_bytes`` (None: not known) of ``label`` are there.

        A label that begins with `CHECKING` is of a file that is here and is hashed.
        """
        ...


class Silent:
    """The `Progress` of someone who does not watch."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        pass


class Source(ABC):
    """One place that models come from."""

    scheme: ClassVar[str]

    @abstractmethod
    def cached(self, rest: str) -> Path | None:
        """What ``rest`` names if this source already has it on this machine, without any network."""
        ...

    @abstractmethod
    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        """Get the file or folder that ``rest`` names, at most ``limit`` bytes of it, and return its path.

        A path inside ``scratch`` (a folder that is the caller's alone) is the caller's to move; any other
        belongs to the source's own cache. Raises `SourceError` with the reason in one line.
        """
        ...
