"""Where things that outlive a process are kept: models, compiled kernels, vocabularies."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pellucid.errors import InvalidRequest
from pellucid.messages import brief

VARIABLE = "PELLUCID_HOME"


def home() -> Path:
    """The folder that holds everything kept between runs: ``PELLUCID_HOME``, or the user's cache folder.

    Raises:
        InvalidRequest: ``PELLUCID_HOME`` names an unknown user, or is not a folder.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:  # set to nothing is not set, as for other variables of the system
        return user_cache()

    def refused(problem: str) -> InvalidRequest:
        return InvalidRequest(f"{VARIABLE}={brief(chosen)}: {problem}: name a folder, or unset it")

    try:
        path = Path(chosen).expanduser().absolute()
        mode = os.stat(path).st_mode
    except RuntimeError:
        raise refused("there is no such user") from None
    except ValueError:
        raise refused("has a NUL character") from None
    except OSError:  # it is not there yet, or may not be looked at: whoever uses it says what is the matter
        return path
    if not stat.S_ISDIR(mode):
        raise refused("is a file")
    return path


def user_cache() -> Path:
    """The user's own cache folder."""
    from platformdirs import user_cache_path

    return user_cache_path("pellucid", appauthor=False)


def make_folder(path: Path) -> None:
    """Make a folder and those above it that are missing, none of them to be written to by others.

    Raises:
        OSError: it cannot be made.
    """
    if not path.is_dir():
        if path.parent != path:
            make_folder(path.parent)
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            if not path.is_dir():
                raise
