"""Files that are used without further checks: compiled kernels, which are executed, and parsed vocabularies.

A file is identified by a folder below the home (``paths.home``) and by its name in this folder. Reading a file returns
its contents if two conditions hold:

1. Only this user or root can have written the file: this user or root owns the file and every folder above it (with
   links resolved), and nobody else can write to them. There are three exceptions. A folder above the file may be like
   ``/tmp``, where others can add files but cannot replace this user's files. A group may write if it is the owner's
   private group, with no other member. If this user owns a folder that nobody else can enter, the folders above this
   folder are not checked. On Windows the same is asked of owners and access control lists (``windows.py``), and
   administrators count as root.
2. Pellucid wrote these contents under this name: the file begins with the HMAC-SHA-256 of its name and its contents.
   The key is random. The first process that writes a file creates the key in ``<home>/cache.key``.

If the home fails the first condition, the user's own cache folder is used instead, with a warning.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hmac
import os
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from pellucid.errors import reason
from pellucid.util.paths import NO_HOME, NOWHERE, STAGING, VARIABLE, home, make_folder, move, staged, user_cache

KEY_NAME = "cache.key"
KEY_BYTES = DIGEST_BYTES = 32
STALE_SECONDS = 86400.0  # seconds after which a staging file must belong to a process that was killed
OWN_HOME = f"set {VARIABLE} to a folder of yours"

_warned = False  # a separate flag, because Numba deletes Python's record of the warnings that were shown


class TrustedFolder:
    """A folder of trusted files: ``name`` below the home, or below the user's cache folder if the home is untrusted."""

    def __init__(self, name: str) -> None:
        self._folders: list[_FolderOfRoot] = []
        problems = [f"{NO_HOME}; until then no file is kept"] if home() == NOWHERE else []
        for root in _roots():
            try:
                self._folders.append(_FolderOfRoot(root, name))
                if self._folders[-1].writable:
                    break
            except OSError as error:
                problems.append(f"{_with_path(error)}; its files are not used")
        if problems:
            where = f"kept in {self._folders[0].root} instead" if self._folders else "made for this process only"
            _warn(f"{problems[0]}, and compiled kernels and vocabularies are {where}")

    @property
    def path(self) -> Path | None:
        """Path of the folder; None if no folder can be trusted."""
        return self._folders[0].path if self._folders else None

    @property
    def keeps(self) -> bool:
        """True if the permissions of a folder allow writing. Writing can still fail, for example on a full disk."""
        return any(place.writable for place in self._folders)

    def has(self, name: str) -> bool:
        """True if a file of that name exists. It may be damaged."""
        return any(os.path.exists(place.path / name) for place in self._folders)

    def read(self, name: str, *, used: bool = False) -> bytes | None:
        """Contents of a file; None if the file cannot be read or trusted. ``used`` marks the file as used now."""
        for place in self._folders:
            try:
                content = place.read(name)
            except Untrusted as error:
                _warn(f"{_with_path(error)}; the file is ignored, and is made again")
                continue
            except OSError:
                continue  # an unreadable file counts as missing
            if content is not None:
                if used:
                    with contextlib.suppress(OSError):  # the times of another user's file cannot be set
                        os.utime(place.path / name)
                return content
        return None

    def write(self, name: str, content: bytes, *, most: int | None = None) -> None:
        """Write a file, or warn that it cannot be kept. Then delete all but the ``most`` most recently used files."""
        problem: str | None = None
        for place in self._folders:
            try:
                place.write(name, content, most)
            except OSError as error:
                problem = (
                    problem or f"compiled kernels and vocabularies cannot be kept in {place.path}: {_with_path(error)}"
                )
            else:
                if problem:
                    _warn(f"{problem}; they are kept in {place.path} instead")
                return
        if problem:
            _warn(f"{problem}; the next process makes them again")


def _roots() -> Iterator[Path]:
    """Folders to keep files in: the home, then the user's cache folder if the home is not trusted or writable."""
    roots = [home(), user_cache()] if os.environ.get(VARIABLE) is not None else [home()]
    yield from dict.fromkeys(root for root in roots if root != NOWHERE)


class Untrusted(PermissionError):
    """Another user could have written a file or folder. ``strerror`` names the path and the remedy."""

    def __init__(self, problem: str) -> None:
        super().__init__(0, problem)


class _FolderOfRoot:
    """A folder below a root, with the root's key.

    Raises OSError: the folder or the key cannot be read, or others can write to them.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.path, self._name = root, root / name, name
        self._key = _read_key(root) if _trusted_path(root) else None
        self._real_path = _trusted_path(self.path)

    @property
    def writable(self) -> bool:
        """True if the system allows writing to the folder."""
        nearest = next(folder for folder in (self.path, *self.path.parents) if os.path.lexists(folder))
        return os.access(nearest, os.W_OK)

    def read(self, name: str) -> bytes | None:
        """Contents of a file; None if the HMAC does not match. Raises FileNotFoundError, Untrusted, OSError."""
        if self._key is None or not self._real_path:
            raise FileNotFoundError(name)
        stored = _read(os.path.join(self._real_path, name))
        digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        return content if hmac.compare_digest(self._digest(self._key, name, content), digest) else None

    def write(self, name: str, content: bytes, most: int | None) -> None:
        """Write a file atomically: another process sees the whole file or no file. Raises OSError."""
        make_folder(self.path)
        self._real_path = _trusted_path(self.path)
        if self._key is None:
            _trusted_path(self.root)
            self._key = _make_key(self.root)
        _remove_stale(self.path)
        with staged(self.path, self._digest(self._key, name, content) + content) as staging:
            os.chmod(staging, 0o644)  # the usual mode: only the key is a secret
            move(staging, self.path / name)
        if most is not None:
            files = [one for one in self.path.iterdir() if one.suffix != STAGING]
            for old in sorted(files, key=lambda one: one.stat().st_mtime)[:-most]:
                with contextlib.suppress(OSError):  # deleted meanwhile, or on Windows open in another process
                    old.unlink()

    def _digest(self, key: bytes, name: str, content: bytes) -> bytes:
        label = f"{self._name}/{name}".encode()
        return hmac.digest(key, b"".join([len(label).to_bytes(8, "little"), label, content]), "sha256")


def _trusted_path(folder: Path) -> str | None:
    """Path of a folder with its links resolved; None if the folder does not exist yet.

    Raises Untrusted: another user can change the folder's contents. Raises OSError: the path cannot be inspected, or is
    not a folder.
    """
    real = os.path.realpath(folder)
    try:
        if not stat.S_ISDIR(os.stat(real).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder")
    except FileNotFoundError:
        return None
    one = real
    while True:
        status, above = os.lstat(one), os.path.dirname(one)
        if sys.platform == "win32":
            _check_access(one, above=one != real)
        # In a folder with the sticky bit, users can rename only their own files.
        sticky = one != real and bool(status.st_mode & stat.S_ISVTX)
        _check_permissions(one, status, sticky=sticky, unmapped=one != real)
        if above == one or _is_exclusive(status):
            return real
        one = above


def _check_permissions(path: str, status: os.stat_result, *, sticky: bool = False, unmapped: bool = False) -> None:
    """Raise `Untrusted` if another user owns a file or may write to it. On Windows ``_check_access`` does so."""
    if not hasattr(os, "geteuid"):
        return
    if status.st_uid not in (0, os.geteuid()) and not (unmapped and status.st_uid == _nobody()):
        raise Untrusted(f"{path} belongs to another user (number {status.st_uid}): {OWN_HOME}")
    others = 0o002 if status.st_mode & 0o020 and _is_private(status.st_gid, status.st_uid) else 0o022
    if status.st_mode & others and not sticky:
        raise Untrusted(f"{path} can be written to by other users: run `chmod go-w {path}`, or {OWN_HOME}")


def _check_access(path: str, descriptor: int | None = None, *, above: bool = False) -> None:
    """Raise `Untrusted` if another user of Windows owns a file or folder, or may change it. Raises OSError.

    ``descriptor`` is the open file. In a folder ``above``, others may add files, but not replace this user's files.
    """
    from pellucid.util import windows as lists

    sddl = lists.sddl_of_path(path) if descriptor is None else lists.sddl_of_file(descriptor)
    for other in lists.others_with(lists.REPLACE if above else lists.CHANGE, sddl, lists.user_sid()):
        remedy = f"remove their rights (icacls), or {OWN_HOME}"
        raise Untrusted(f"{path} can be written to by other users ({other}): {remedy}")


def _is_exclusive(status: os.stat_result) -> bool:
    """True if a folder belongs to this user, and nobody else can reach the files below it."""
    return hasattr(os, "geteuid") and status.st_uid == os.geteuid() and not status.st_mode & 0o011


@functools.cache
def _is_private(group: int, owner: int) -> bool:
    """True if the owner is the only member of a group. By convention a private group has the name of its user.

    The names are compared because a directory service (LDAP) need not list all users with this primary group.
    """
    if sys.platform == "win32":
        return False
    import grp
    import pwd

    try:
        user = pwd.getpwuid(owner)
    except KeyError:  # as in a container that runs under a numeric user id
        if (owner, group) != (os.geteuid(), os.getegid()) or owner != group:
            return False
        name = None
    else:
        if user.pw_gid != group:
            return False
        name = user.pw_name
    try:
        entry = grp.getgrgid(group)
    except KeyError:
        pass  # an unlisted group has no other members
    else:
        if entry.gr_name != name or set(entry.gr_mem) - {name}:
            return False
    return not any(one.pw_gid == group and one.pw_uid != owner for one in pwd.getpwall())


@functools.cache
def _nobody() -> int | None:
    """User id that a container shows for the host's unmapped users, including root; None if all users are mapped."""
    try:
        if Path("/proc/self/uid_map").read_text(encoding="ascii").split() == ["0", "0", str(2**32 - 1)]:
            return None  # all users are mapped
        return int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _read(path: str) -> bytes:
    """Bytes of a file that only this user or root can have written. Raises Untrusted, OSError."""
    flags = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    with open(os.open(path, os.O_RDONLY | flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"{path} is not a regular file")
        if sys.platform == "win32":
            _check_access(path, file.fileno())
        _check_permissions(path, status)
        return file.read()


def _read_key(root: Path) -> bytes | None:
    """The key; None if it is missing or damaged. Raises Untrusted, OSError."""
    path = os.path.join(root, KEY_NAME)
    try:
        key = _read(path)
    except FileNotFoundError:
        return None
    except Untrusted:
        raise
    except PermissionError as error:
        remedy = f"make {path} readable (chmod a+r), or {OWN_HOME}"
        raise PermissionError(error.errno, f"{path} cannot be read: {remedy}") from error
    return key if len(key) == KEY_BYTES else None


def _make_key(root: Path) -> bytes:
    """Create the key, readable by this user only, or read the key of another process. Raises OSError."""
    path = root / KEY_NAME
    with staged(root, os.urandom(KEY_BYTES)) as staging:
        try:
            os.link(staging, path)
        except OSError:  # the key exists, or the file system has no hard links
            if _read_key(root) is None:
                move(staging, path)
    key = _read_key(root)
    if key is None:
        raise OSError(errno.EIO, f"{path} cannot be kept")
    return key


def _remove_stale(folder: Path) -> None:
    """Remove the files of processes that were killed while they wrote."""
    for path in folder.glob(f".*{STAGING}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _with_path(error: OSError) -> str:
    """Reason of an error, preceded by its path."""
    if isinstance(error, Untrusted) or not error.filename:
        return reason(error)
    return f"{os.fsdecode(error.filename)}: {reason(error)}"


def _warn(message: str) -> None:
    """Warn once per process. Compiled kernels and vocabularies are used nevertheless."""
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=2)
