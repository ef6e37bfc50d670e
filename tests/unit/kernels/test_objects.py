"""The object files of an installation: found by name, used only if they are whole."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import KernelError
from pellucid.kernels.core import isa, library, objects
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import Library
from pellucid.kernels.core.objects import Objects

ADD, PICK = KernelKey("add"), KernelKey("pick")


@pytest.fixture(scope="module")
def compiled() -> bytes:
    return library.compile_kernel(PICK)


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bytes) -> Path:
    """An installation with one kernel, without a compiler; the home folder is empty."""
    monkeypatch.setenv("PELLUCID_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(objects, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "can_compile", lambda: False)
    path = objects.path_of(isa.target().name)
    objects.write(path, {library.file_name(PICK): compiled, "another": b"content"})
    return path


def installed(content: bytes, patch: pytest.MonkeyPatch) -> None:
    """Change the installation to one that has not been read, with an object file of this content."""
    folder = Path(tempfile.mkdtemp(dir=objects.FOLDER))
    patch.setattr(objects, "FOLDER", folder)
    objects.path_of(isa.target().name).write_bytes(content)


def test_what_was_written_is_read(installation: Path, compiled: bytes) -> None:
    found = Objects(installation)
    assert len(found) == 2
    assert found.read("another") == b"content"
    assert found.read(library.file_name(PICK)) == compiled
    assert found.has("another")
    assert not found.has("a third")
    assert found.read("a third") is None


def test_a_kernel_of_the_installation_needs_no_compiler(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Library()
    assert shelf.is_cached([PICK])
    assert shelf.load([PICK])
    monkeypatch.setattr(objects, "FOLDER", installation.parent / "nothing")
    assert Library().load([PICK]), "it is in the cache now, for a faster start"


def test_another_kernel_names_the_remedy(installation: Path) -> None:
    shelf = Library()
    assert not shelf.is_cached([ADD])
    with pytest.raises(KernelError, match=r"no compiled kernel of add for .*: pip install 'pellucid\[compile\]'"):
        shelf.load([ADD])


@pytest.mark.parametrize("content", [b"", b"other", b"pellucid objects\xff\xff"])
def test_a_damaged_installation_is_not_called_absent(
    installation: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(content, monkeypatch)
    with pytest.raises(KernelError, match=r"the installed kernels for .* are damaged .*: pip install --force-re"):
        Library().load([PICK])


def test_a_damaged_group_is_not_called_absent(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = installation.read_bytes()
    installed(content[: len(content) - 200], monkeypatch)
    assert Library().is_cached([PICK])  # the index is whole
    with pytest.raises(KernelError, match=r"are damaged \(pick\)"):
        Library().load([PICK])


def test_a_kernel_of_other_sources_is_not_used(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "sources", lambda _: "changed")
    assert not Library().is_cached([PICK])


def test_the_variable_hides_what_is_installed(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_COMPILE", "1")
    assert not Library().is_cached([PICK])
    monkeypatch.setenv("PELLUCID_COMPILE", "0")
    assert Library().is_cached([PICK])


@pytest.mark.parametrize("at", [0, 17, 30, -3])
def test_damaged_files_hold_nothing_wrong(installation: Path, compiled: bytes, at: int) -> None:
    """Damage to the magic, the count, the index and the contents."""
    content = bytearray(installation.read_bytes())
    content[at] ^= 0x40
    installation.write_bytes(content)
    found = Objects(installation)
    read = [found.read(name) for name in (library.file_name(PICK), "another")]
    assert None in read
    assert all(one in (None, compiled, b"content") for one in read)


@pytest.mark.parametrize("size", [0, 10, 18, 40, 100])
def test_files_that_are_cut_off_hold_nothing_wrong(installation: Path, size: int) -> None:
    installation.write_bytes(installation.read_bytes()[:size])
    assert Objects(installation).read(library.file_name(PICK)) is None


def test_equal_objects_make_equal_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        objects.write(path, {"x": b"1", "y": b"2"})
    assert first.read_bytes() == second.read_bytes()


@settings(max_examples=10)
@given(st.dictionaries(st.from_regex(r"[ab]-[a-z]{3}", fullmatch=True), st.binary(max_size=60), max_size=12))
def test_objects_of_any_size_and_number_are_found(contents: dict[str, bytes]) -> None:
    contents = {name: 1000 * content for name, content in contents.items()}  # several groups
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        objects.write(path, contents)
        found = Objects(path)
        assert {name: found.read(name) for name in reversed(contents)} == contents


def test_a_python_without_lzma_says_so(installation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(KernelError, match="without the module lzma"):
        Objects(installation).read("another")
