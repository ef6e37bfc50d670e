"""Where model files come from. One file per source, found by being in this folder.

A spec is ``scheme:rest``; each module here has a ``SOURCE`` that knows what ``rest`` means. Adding a source
is adding a file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

CHECKING = "checking "  # how a label begins that is not of something fetched


class Progress(Protocol):
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


class Source(Protocol):
    """One place that models come from."""

    scheme: str

    def cached(self, rest: str) -> Path | None:
        """What ``rest`` names if this source already has it on this machine, without any network."""
        ...

    def fetch(self, rest: str, scratch: Path, progress: Progress, limit: int | None) -> Path:
        """Get the file or folder that ``rest`` names, at most ``limit`` bytes of it, and return its path.

        A path inside ``scratch`` (a folder that is the caller's alone) is the caller's to move; any other
        belongs to the source's own cache. Raises `SourceError` with the reason in one line.
        """
        ...


@lru_cache(maxsize=1)
def sources() -> Mapping[str, Source]:
    """All sources by scheme."""
    found: dict[str, Source] = {}
    for module in pkgutil.iter_modules(__path__):
        source: Source = importlib.import_module(f"{__name__}.{module.name}").SOURCE
        if source.scheme in found:
            raise RuntimeError(f"two modules in {__name__} have the scheme {source.scheme!r}")
        found[source.scheme] = source
    return MappingProxyType(found)
