"""Folders for files that outlive a process: models, compiled kernels, vocabularies."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pellucid.errors import InvalidRequest, brief, reason

VARIABLE = "PELLUCID_HOME"
STAGING = ".staging"  # suffix of a file being written
MOVE_SECONDS = 2.0
_IN_USE = (5, 32)  # errors of Windows: access denied, sharing violation
_RESERVED = re.compile(
    r'[\\:*?"<>|]|^(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]) *(?:\.|$)', re.IGNORECASE
)
NOWHERE = Path(os.devnull) / "pellucid"
"""The home of a user without a home folder: nothing is in it, and nothing can be written to it."""
NO_HOME = f"no home folder is known: set {VARIABLE} to a folder"


def home() -> Path:
    """Folder of all files that are kept between runs: ``PELLUCID_HOME``, or the user's cache folder (`user_cache`).

    Raises InvalidRequest: ``PELLUCID_HOME`` names an unknown user, is not a folder, or is relative to a folder that no
    longer exists.
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:  # an empty variable counts as unset
        return user_cache()

    def refused(problem: str) -> InvalidRequest:
        return InvalidRequest(f"{VARIABLE}={brief(chosen)}: {problem}: name a folder, or unset it")

    try:
        path = Path(chosen).expanduser()
    except RuntimeError:
        raise refused("there is no such user") from None
    try:
        path = path.absolute()
    except OSError:
        raise refused("is relative, and the working directory does not exist any more") from None
    try:
        mode = os.stat(path).st_mode
    except ValueError:
        raise refused("has a NUL character") from None
    except OSError:  # missing or not accessible: the code that uses the folder reports the problem
        return path
    if not stat.S_ISDIR(mode):
        raise refused("is a file")
    return path


def user_cache() -> Path:
    """The user's own cache folder; `NOWHERE` if the user has no home folder."""
    from platformdirs import user_cache_path

    try:
        path = user_cache_path("pellucid", appauthor=False)
    except RuntimeError:
        return NOWHERE
    # An unknown home folder leaves ``~`` as it is.
    return NOWHERE if path.parts[0].startswith("~") else path


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents. Other users cannot write to the new folders.

    Raises OSError: a folder cannot be created.
    """
    if not path.is_dir():
        if path.parent != path:
            make_folder(path.parent)
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            if not path.is_dir():
                raise


def move(source: str | Path, target: str | Path) -> None:
    """Move a file or folder to ``target`` in one step. A file replaces the file at ``target``.

    On Windows a file that is open cannot be moved or replaced, and virus scanners open new files for a moment. So the
    move is tried for ``MOVE_SECONDS``. Raises OSError: the move is not possible.
    """
    deadline = time.monotonic() + MOVE_SECONDS
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _IN_USE or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextlib.contextmanager
def file_lock(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold a lock between processes: the file ``path``. Calls ``waiting`` once if another process holds it.

    Raises OSError: the file cannot be created.
    """
    from filelock import FileLock, Timeout

    make_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def output_lock(name: str, path: Path) -> Iterator[None]:
    """Hold the output ``path`` of the option ``name`` for a run that writes it bit by bit.

    A device, a pipe and a file in a missing folder need no lock. Raises InvalidRequest: another process holds it, or no
    lock can be created beside it.
    """

    def refuse() -> None:
        raise InvalidRequest(
            f"{name}={brief(str(path))}: another run writes this file: wait for its end, or name another file"
        )

    lock = path.with_name(f"{path.name}.lock")
    with contextlib.ExitStack() as held:
        if path.parent.is_dir() and (path.is_file() or not path.exists()):
            try:
                lock.touch()  # filelock waits if it cannot create the file
                held.enter_context(file_lock(lock, refuse))
            except OSError as error:
                raise InvalidRequest(f"{name}={brief(str(path))}: cannot be written: {reason(error)}") from error
            held.push(lambda *_: _forget(lock))
        yield


def _forget(path: Path) -> None:
    """Delete a lock file. Windows deletes no open file, but releases the lock anyway."""
    with contextlib.suppress(OSError):
        path.unlink()


def is_file_name(name: str) -> bool:
    """True if a relative path with "/" names a file below a folder on every system, and the same file.

    Windows also separates by a backslash, reserves some characters and names of devices, and drops dots and spaces at
    the end. Source: "Naming Files, Paths, and Namespaces" in Microsoft's documentation.
    """
    return name.isprintable() and all(
        part.strip(". ") and part[-1] not in ". " and not _RESERVED.search(part) for part in name.split("/")
    )


def refuse_same(name: str, path: Path, inputs: Iterable[str | Path]) -> None:
    """Refuse an output that is one of the inputs, also by a symbolic or hard link.

    Raises InvalidRequest: writing ``path`` would destroy an input.
    """
    for other in inputs:
        try:
            same = os.path.samefile(path, other)
        except (OSError, ValueError):  # a file does not exist
            continue
        if same:
            raise InvalidRequest(
                f"{name}={brief(str(path))}: is the same file as {brief(str(other))}: name another file"
            )


@contextlib.contextmanager
def staged(folder: Path, content: bytes) -> Iterator[str]:
    """Path of a new file with ``content`` and an unpredictable name, readable by this user only.

    The file is deleted at the end unless it was moved. Raises OSError: the file cannot be written.
    """
    from tempfile import mkstemp

    handle, path = mkstemp(prefix=".", suffix=STAGING, dir=folder)
    try:
        with open(handle, "wb") as file:
            file.write(content)
        yield path
    finally:
        with contextlib.suppress(OSError):  # moved, or on Windows open in a virus scanner
            os.unlink(path)
