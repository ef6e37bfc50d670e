"""Where things that outlive a process are kept: models, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder that holds everything kept between runs: ``PELLUCID_HOME``, or the user's cache folder."""
    chosen = os.environ.get("PELLUCID_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("pellucid", appauthor=False)
