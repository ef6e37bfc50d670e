"""Standard streams on Windows: UTF-8 in files and pipes, the console's encoding in a console, closed pipes."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from typing import Any

import pytest

from pellucid.cli import main as module
from pellucid.cli.main import main

TEXT = "naïve 東京 😀 \udcff"


class Stream(io.TextIOWrapper):
    """A stream with a code page of Windows, as Python opens it for a file or a pipe."""

    def __init__(self, content: bytes = b"", *, console: bool = False, errors: str = "strict") -> None:
        self.content = io.BytesIO(content)
        super().__init__(self.content, encoding="utf-8" if console else "cp1252", errors=errors, write_through=True)
        self._console = console

    def isatty(self) -> bool:
        return self._console


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Any:
    def replace(console: bool = False, platform: str = "win32") -> tuple[Stream, Stream, Stream]:
        made = (
            Stream("東京 \r\n".encode(), console=console),
            Stream(console=console),
            Stream(console=console, errors="backslashreplace"),
        )
        for name, stream in zip(("stdin", "stdout", "stderr"), made):
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(module.sys, "platform", platform)
        return made

    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # ``main`` replaces it
    return replace


def run() -> None:
    """Run a command line, and forget what it has printed."""
    assert main(["--version"]) == 0
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, Stream)
        stream.content.seek(0)
        stream.content.truncate()


def test_files_and_pipes_have_utf_8(streams: Any) -> None:
    stdin, stdout, stderr = streams()
    run()
    assert stdin.read() == "東京 \n"
    print(TEXT, end="")
    print(TEXT, end="", file=sys.stderr)
    assert stdout.content.getvalue().decode() == TEXT.replace("\udcff", "?")
    assert stderr.content.getvalue().decode() == TEXT.replace("\udcff", "\\udcff")


def test_invalid_input_does_not_end_in_a_traceback(streams: Any) -> None:
    stdin, _, _ = streams()
    stdin.content.write(b"caf\xe9\n")
    stdin.content.seek(0)
    run()
    assert stdin.readline() == "caf\udce9\n"


@pytest.mark.parametrize(("console", "platform"), [(True, "win32"), (False, "linux")])
def test_a_console_and_other_systems_keep_their_encoding(streams: Any, console: bool, platform: str) -> None:
    _, stdout, _ = streams(console, platform)
    before = stdout.encoding
    run()
    assert (stdout.encoding, stdout.errors) == (before, "replace")


def test_a_chosen_encoding_stays(streams: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stdout, _ = streams()
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    run()
    print("東京 é", end="")
    assert stdout.content.getvalue() == b"?? \xe9"


@pytest.mark.parametrize(("platform", "code"), [("win32", 141), ("linux", 2)])
def test_a_closed_pipe_of_windows(streams: Any, monkeypatch: pytest.MonkeyPatch, platform: str, code: int) -> None:
    _, stdout, stderr = streams(platform=platform)

    def fail() -> None:
        if stdout.content.getvalue():
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(stdout, "flush", fail)
    dropped = list[int]()
    monkeypatch.setattr(stdout, "fileno", lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup2", lambda nothing, number: dropped.append(number) or os.close(nothing))
        assert main(["--version"]) == code
    assert dropped == [1]
    assert bool(stderr.content.getvalue()) == (code == 2)
