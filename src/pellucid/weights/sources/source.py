"""The interface of a source, the discovery of the sources in this folder, and progress callbacks."""

from __future__ import annotations

import functools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from pellucid.errors import SourceError, brief, reason
from pellucid.util.registry import discover

SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9]+):(?P<rest>.+)")  # at least two letters: C:\ is a drive
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

    def spec_of(self, text: str) -> str | None:
        """The ``rest`` of a spec in another form that users write, such as a web address.

        None if ``text`` has no such form. Raises `SourceError` for a part that is not supported.
        """
        return None

    def elsewhere(self, rest: str) -> str | None:
        """If the file or folder ``rest`` is in a cache of the source's own, advice how to remove it there."""
        return None

    @abstractmethod
    def cached(self, rest: str) -> Path | None:
        """The path of the file or folder ``rest`` on this machine; None if it is absent. Does not use the network."""
        ...

    @abstractmethod
    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        """Fetch the file or folder ``rest``, at most ``limit`` bytes, and return its path.

        ``scratch`` is a folder of the caller, who may move a returned path out of it. A returned path outside of
        ``scratch`` belongs to the source, for example to its cache, and is not moved. Raises `SourceError` with the
        reason in one line; `DownloadInterrupted` if another call with the same ``scratch`` continues the download.
        """
        ...


@functools.cache
def sources() -> Mapping[str, Source]:
    """Every source, by its scheme. Raises TypeError: two files declare the same scheme."""
    return discover("pellucid.weights.sources", Source, lambda source: (source.scheme,))  # type: ignore[type-abstract]


def source_of(text: str) -> tuple[str, str] | None:
    """The scheme and the rest of a spec, in any form that a source knows; None if the text names no source.

    Raises `SourceError` as ``Source.spec_of``.
    """
    for scheme, source in sources().items():
        if (rest := source.spec_of(text)) is not None:
            return scheme, rest
    named = SCHEME.fullmatch(text)
    return (named["scheme"], named["rest"]) if named else None


def unreadable(path: str) -> str | None:
    """The reason why the existence of ``path`` cannot be checked; None if the check succeeds."""
    try:
        os.stat(Path(path).expanduser())
    except (FileNotFoundError, NotADirectoryError):
        pass
    # OSError: no permission, or a loop of links. RuntimeError: an unknown user. ValueError: a NUL in the name.
    except (OSError, RuntimeError, ValueError) as error:
        return f"{brief(path)} cannot be read: {reason(error)}"
    return None


class Local(Source):
    """``local:PATH``, or PATH alone: files and folders on this machine."""

    scheme = "local"

    def cached(self, rest: str) -> Path | None:
        try:
            path = Path(rest).expanduser()
            return path if rest and os.path.exists(path) else None
        except RuntimeError:  # an unknown user
            return None

    def fetch(self, rest: str, scratch: Path, progress: DownloadProgress, limit: int | None) -> Path:
        path = self.cached(rest)
        if path is None:
            raise SourceError(unreadable(rest) or f"there is no file or folder {brief(rest)}")
        return path


SOURCE: Source = Local()
