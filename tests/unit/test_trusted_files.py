"""Files that are executed are read only if this user wrote them, under this name, and nobody else can write there."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from support.fresh import fresh

from pellucid.util import trusted_files
from pellucid.util.trusted_files import KEY_NAME

if sys.platform == "win32":
    pytest.skip("owners and permissions of POSIX", allow_module_level=True)

import grp
import pwd

NAME = "kernels/abc"
STRANGER = 54321


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, in a process that has read no file. Groups are not private."""
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("users", "x", number, ["bob"])))
    return fresh(trusted_files)


@pytest.fixture
def home(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a file, and a cache folder for an untrusted home."""
    home = tmp_path / "home"
    monkeypatch.setenv("PELLUCID_HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files.TrustedFolder(NAME).write("file", b"content")
    return home


def kept_elsewhere(files: Any, home: Path) -> bool:
    """True if the home's file is ignored, and a file in the user's cache folder is used instead."""
    with pytest.warns(RuntimeWarning, match="its files are not used") as warned:
        before = files.TrustedFolder(NAME).read("file")
    files.TrustedFolder(NAME).write("file", b"mine")
    place = home.parent / "cache" / "pellucid" / NAME / "file"
    assert len(warned) == 1
    return before is None and files.TrustedFolder(NAME).read("file") == b"mine" and place.exists()


def test_what_is_written_is_read(files: Any, home: Path) -> None:
    assert files.TrustedFolder(NAME).read("file") == b"content"
    assert files.TrustedFolder(NAME).read("another") is None
    assert (home / KEY_NAME).stat().st_mode & 0o777 == 0o600
    for folder in (home, home / "kernels", home / NAME):
        assert folder.stat().st_mode & 0o022 == 0


def test_nothing_is_left_to_others_whatever_the_umask(files: Any, home: Path) -> None:
    before = os.umask(0)
    try:
        files.TrustedFolder("kernels/def").write("file", b"content")
    finally:
        os.umask(before)
    assert (home / "kernels/def").stat().st_mode & 0o022 == 0
    assert files.TrustedFolder("kernels/def").read("file") == b"content"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
@pytest.mark.parametrize("folder", ["", "kernels", NAME])
def test_a_folder_that_others_can_write_to(files: Any, home: Path, folder: str, mode: int) -> None:
    (home / folder).chmod(mode)
    if mode == 0o1777 and folder == "kernels":  # others can add files but cannot replace the folder below
        assert files.TrustedFolder(NAME).read("file") == b"content"
    else:
        assert kept_elsewhere(files, home)


def test_a_folder_above_that_others_can_write_to(files: Any, home: Path) -> None:
    home.parent.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=f"{home.parent} can be written to by other users: run `chmod"):
        assert files.TrustedFolder(NAME).read("file") is None
    home.parent.chmod(0o1777)
    assert files.TrustedFolder(NAME).read("file") == b"content"


def test_a_link_to_a_folder_is_followed_and_checked(files: Any, home: Path) -> None:
    moved = home.parent / "moved"
    (home / "kernels").rename(moved)
    (home / "kernels").symlink_to(moved)
    assert files.TrustedFolder(NAME).read("file") == b"content"
    moved.chmod(0o777)
    assert kept_elsewhere(files, home)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("folder", ["", "kernels", NAME])
def test_a_folder_of_another_user(files: Any, home: Path, folder: str) -> None:
    os.chown(home / folder, STRANGER, -1)
    assert kept_elsewhere(files, home)


def test_another_user_is_whoever_is_neither_root_nor_this_one(
    files: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert files.TrustedFolder(NAME).read("file") == (b"content" if home.stat().st_uid == 0 else None)


def container(monkeypatch: pytest.MonkeyPatch, users: str) -> Any:
    """The module in a container whose map of users is ``users``; users without a place in it are shown as STRANGER."""
    given = {"/proc/self/uid_map": users, "/proc/sys/kernel/overflowuid": f"{STRANGER}\n"}
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: given[str(self)])
    return fresh(trusted_files)


def test_owners_that_a_container_does_not_know_may_be_above(
    files: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actual = os.lstat

    class Given:
        """A status that assigns the folder above the home to another user."""

        def __init__(self, status: os.stat_result) -> None:
            self.st_mode, self.st_uid, self.st_gid = status.st_mode, STRANGER, STRANGER

    monkeypatch.setattr(os, "lstat", lambda path: Given(actual(path)) if path == str(home.parent) else actual(path))
    assert container(monkeypatch, "0 0 1000\n").TrustedFolder(NAME).read("file") == b"content"
    remedy = r"\(number 54321\): set PELLUCID_HOME to a folder of yours; its files are not used"
    with pytest.warns(RuntimeWarning, match=f"{home.parent} belongs to another user {remedy}"):
        assert container(monkeypatch, f"0 0 {2**32 - 1}\n").TrustedFolder(NAME).read("file") is None


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_can_write_to_is_made_again(files: Any, home: Path, mode: int) -> None:
    path = home / NAME / "file"
    path.chmod(mode)
    with pytest.warns(RuntimeWarning, match=r"file can be written to by other users: .*made again"):
        assert files.TrustedFolder(NAME).read("file") is None
    files.TrustedFolder(NAME).write("file", b"content")
    assert files.TrustedFolder(NAME).read("file") == b"content"


def test_a_key_that_others_can_write_to(files: Any, home: Path) -> None:
    (home / KEY_NAME).chmod(0o666)
    assert kept_elsewhere(files, home)


@pytest.mark.parametrize("damage", [b"", b"short", bytes(32), bytes(33)])
def test_a_damaged_key_is_made_again(files: Any, home: Path, damage: bytes) -> None:
    (home / KEY_NAME).write_bytes(damage)
    assert files.TrustedFolder(NAME).read("file") is None
    files.TrustedFolder(NAME).write("file", b"again")
    assert files.TrustedFolder(NAME).read("file") == b"again"


def test_a_file_is_that_of_its_name_and_folder(files: Any, home: Path) -> None:
    folder, other = files.TrustedFolder(NAME), files.TrustedFolder("kernels/other")
    folder.write("second", b"another")
    other.write("file", b"third")
    (home / NAME / "file").write_bytes((home / NAME / "second").read_bytes())
    assert folder.read("file") is None
    (home / "kernels/other/file").write_bytes((home / NAME / "second").read_bytes())
    assert other.read("file") is None
    assert folder.read("second") == b"another"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_regular_files_are_read(files: Any, home: Path, kind: str) -> None:
    path = home / NAME / "file"
    path.rename(path.with_name("moved"))
    {"link": lambda: path.symlink_to("moved"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    assert files.TrustedFolder(NAME).read("file") is None


def test_what_killed_processes_left_is_removed_later(files: Any, home: Path) -> None:
    old, young = (home / NAME / f".{name}{files.STAGING}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half a file")
    past = time.time() - files.STALE_SECONDS - 60
    os.utime(old, (past, past))
    files.TrustedFolder(NAME).write("file", b"content")
    assert sorted(path.name for path in (home / NAME).iterdir()) == [young.name, "file"]


def test_a_home_that_cannot_be_written_to_is_still_read(
    files: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may fill a home for all users, with a readable key."""
    actual = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)) and actual(path, mode))

    def forbidden(folder: Path) -> None:
        if folder.is_relative_to(home):
            raise OSError(30, "Read-only file system")
        make(folder)

    make = files.make_folder
    monkeypatch.setattr(files, "make_folder", forbidden)
    assert files.TrustedFolder(NAME).read("file") == b"content"
    with pytest.warns(RuntimeWarning, match=r"cannot be kept in .*home.*Read-only.* kept in .*cache"):
        files.TrustedFolder(NAME).write("more", b"mine")
    assert files.TrustedFolder(NAME).read("more") == b"mine"
    assert files.TrustedFolder(NAME).read("file") == b"content"


def test_a_home_whose_key_cannot_be_read(files: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: str, *rest: int) -> int:
        if path == str(home / KEY_NAME):
            raise PermissionError(13, "Permission denied", path)
        return actual(path, *rest)

    actual = os.open
    monkeypatch.setattr(os, "open", opened)
    with pytest.warns(RuntimeWarning, match=rf"make {home}/cache.key readable \(chmod a\+r\), or set PELLUCID"):
        files.TrustedFolder(NAME)
    assert kept_elsewhere(fresh(trusted_files), home)


def test_a_file_that_cannot_be_touched_is_read(files: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def utime(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "utime", utime)
    assert files.TrustedFolder(NAME).read("file", used=True) == b"content"


def test_what_is_above_a_folder_that_nobody_else_enters_does_not_matter(files: Any, home: Path) -> None:
    home.parent.chmod(0o777)
    home.chmod(0o700)
    assert files.TrustedFolder(NAME).read("file") == b"content"
    home.chmod(0o710)
    with pytest.warns(RuntimeWarning, match=f"{home.parent} can be written to by other users"):
        assert files.TrustedFolder(NAME).read("file") is None


@pytest.mark.parametrize("path", ["..", "", "kernels", NAME, f"{NAME}/file", KEY_NAME])
def test_a_private_group_may_write(files: Any, home: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """With umask 002 each user has a private group."""
    (home / path).chmod((home / path).stat().st_mode | 0o020)
    group = grp.struct_group((pwd.getpwuid(os.geteuid()).pw_name, "x", os.stat(home).st_gid, []))
    monkeypatch.setattr(grp, "getgrgid", {group.gr_gid: group}.__getitem__)
    files = fresh(trusted_files)
    assert files.TrustedFolder(NAME).read("file") == b"content"
    (home / path).chmod((home / path).stat().st_mode | 0o002)
    with pytest.warns(RuntimeWarning, match="can be written to by other users"):
        assert files.TrustedFolder(NAME).read("file") is None


USER, GROUP = ("ada", 1000, 1000), ("ada", 1000, ())
PRIVATE = {
    "usual": ([USER], [GROUP], True),
    "lists its user": ([USER], [("ada", 1000, ("ada",))], True),
    "has no entry": ([USER], [], True),
    "has a member": ([USER], [("ada", 1000, ("bob",))], False),
    "another's first group too": ([USER, ("bob", 1001, 1000)], [GROUP], False),
    "not the user's first": ([("ada", 1000, 100)], [GROUP], False),
    "of all users": ([USER], [("users", 1000, ())], False),
    "no user of that number": ([], [GROUP], False),
    "neither has an entry": ([], [], True),
}


@pytest.mark.parametrize(("users", "groups", "private_group"), PRIVATE.values(), ids=list(PRIVATE))
def test_which_group_is_private(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    users: list[tuple[str, int, int]],
    groups: list[tuple[str, int, tuple[str, ...]]],
    private_group: bool,
) -> None:
    """A file that its group may write to is read if the group is private."""
    path = home / NAME / "file"
    path.chmod(0o664)
    everyone = [pwd.struct_passwd((name, "x", uid, gid, "", "/", "/")) for name, uid, gid in users]
    monkeypatch.setattr(pwd, "getpwall", lambda: everyone)
    monkeypatch.setattr(pwd, "getpwuid", {one.pw_uid: one for one in everyone}.__getitem__)
    entries = {gid: grp.struct_group((name, "x", gid, list(names))) for name, gid, names in groups}
    monkeypatch.setattr(grp, "getgrgid", entries.__getitem__)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getegid", lambda: 1000)

    def owned(status: os.stat_result) -> os.stat_result:
        """The status of a file of user 1000 and group 1000."""
        return os.stat_result((*status[:4], 1000, 1000, *status[6:]))

    actual, lstat = os.fstat, os.lstat
    monkeypatch.setattr(os, "fstat", lambda number: owned(actual(number)))
    monkeypatch.setattr(os, "lstat", lambda one: owned(lstat(one)))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = fresh(trusted_files).TrustedFolder(NAME).read("file")
    assert (found == b"content") is private_group
    assert [*map(str, warned)] == [] or not private_group


def test_whether_anything_can_be_kept(files: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.TrustedFolder(NAME).keeps
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not files.TrustedFolder(NAME).keeps


def test_there_need_not_be_a_cache_folder(files: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_cache_path", unknown)
    home.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="made for this process only"):
        assert files.TrustedFolder(NAME).read("file") is None
