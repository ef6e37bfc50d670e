"""``local:PATH``, or PATH alone: files and folders on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from pellucid.errors import SourceError
from pellucid.errors.messages import brief, reason
from pellucid.weights.sources.source import DownloadProgress, Source


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
