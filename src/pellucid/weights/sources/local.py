"""``local:PATH``, or just PATH: files and folders that are already here."""

from __future__ import annotations

from pathlib import Path

from pellucid.errors import SourceError
from pellucid.weights.sources import Progress, Source


class Local:
    scheme = "local"

    def cached(self, rest: str) -> Path | None:
        try:
            path = Path(rest).expanduser()
            return path if rest and path.exists() else None
        except (OSError, RuntimeError, ValueError):  # no permission, no such user, a NUL in the name
            return None

    def fetch(self, rest: str, scratch: Path, progress: Progress, limit: int | None) -> Path:
        path = self.cached(rest)
        if path is None:
            raise SourceError(f"there is no file or folder {rest!r}")
        return path


SOURCE: Source = Local()
