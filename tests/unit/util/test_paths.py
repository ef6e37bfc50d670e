"""Names of files that mean the same on every system, and moves that wait on Windows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pellucid.util import paths
from pellucid.util.paths import is_file_name, move


@pytest.mark.parametrize(
    "name",
    ["model.gguf", "a/b c/d.json", ".pellucid.json", "console.txt", "com10", "模型.gguf", "a..b", "null/aux1.txt"],
)  # fmt: skip
def test_names_of_files(name: str) -> None:
    assert is_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "/etc/passwd", "a//b", "a/", "..", ".", "a/../b", "../x", "...", " ", "a/ ./b",  # places elsewhere
        "a\\b", "..\\..\\x", "C:\\x", "C:x", "model.gguf:stream",  # Windows' separator, drives and streams
        "a?", "a*", 'a"b', "a|b", "a<b", "a\0b", "a\nb",
        "con", "NUL.txt", "aux/x", "x/COM1.json", "lpt9", "Com¹", "prn .txt", "CONIN$",  # devices
        "a.", "a ", "a./b",  # dots and spaces that Windows drops
    ],
)  # fmt: skip
def test_names_that_are_something_else_on_some_system(name: str) -> None:
    assert not is_file_name(name)


class InUse(PermissionError):
    winerror = 32


def test_a_file_in_use_is_moved_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    tries, replace = list[int](), os.replace

    def busy(source: str, target: str) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise InUse(13, "The process cannot access the file because it is being used by another process")
        replace(source, target)

    monkeypatch.setattr(os, "replace", busy)
    move(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"
    assert len(tries) == 3


@pytest.mark.parametrize(("error", "tries"), [(InUse(13, "in use"), 2), (PermissionError(13, "denied"), 1)])
def test_a_move_that_is_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, tries: int
) -> None:
    made = list[int]()

    def refuse(source: str, target: str) -> None:
        made.append(1)
        raise error

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(paths, "MOVE_SECONDS", 0.02)
    with pytest.raises(PermissionError):
        move(tmp_path / "new", tmp_path / "old")
    assert len(made) == tries
