"""Files that change while they are read: a one-line error, no signal, and no model of mixed old and new bytes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.processes import environment, python
from support.tiny import LLAMA_GGUF, LLAMA_GGUF_SHAPES, write_llama, write_llama_gguf
from support.tokenizer_file import gguf_tokenizer, write_tokenizer

from pellucid.errors import FileFormatError
from pellucid.weights.checkpoint import ModelFile
from pellucid.weights.gguf import open_gguf

CONTENT = bytes(range(256)) * 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture(params=["preadv", "seek"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads with and without the system's positional reads."""
    if request.param == "seek":
        monkeypatch.delattr(os, "preadv", raising=False)
    elif not hasattr(os, "preadv"):
        pytest.skip("this system has no preadv")


@pytest.mark.usefixtures("either_way")
def test_any_part_can_be_read(path: Path) -> None:
    file = ModelFile(path)
    for start, count in ((0, len(CONTENT)), (0, 0), (5, 300), (len(CONTENT) - 1, 1)):
        assert file.read(start, count) == CONTENT[start : start + count]
    file.close()
    file.close()


@pytest.mark.usefixtures("either_way")
def test_a_file_that_became_shorter(path: Path) -> None:
    file = ModelFile(path)
    os.truncate(path, 1000)
    assert file.read(0, 1000) == CONTENT[:1000]
    message = r"file: file at byte 900: changed while it was read: expected 500 bytes, found 100"
    with pytest.raises(FileFormatError, match=message):
        file.read(900, 500)
    with pytest.raises(FileFormatError, match="1,000 bytes instead of 16,384; try again"):
        file.check_unchanged()


def test_a_file_that_is_written_to_in_place(path: Path) -> None:
    file = ModelFile(path)
    file.check_unchanged()
    status = path.stat()
    with open(path, "r+b") as other:
        other.write(b"something else")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # the clock of file times may be coarse
    with pytest.raises(FileFormatError, match="changed while it was read: it was written to; try again"):
        file.check_unchanged()


def test_a_file_that_is_replaced_is_read_to_its_end(path: Path) -> None:
    file = ModelFile(path)
    other = path.with_name("other")
    other.write_bytes(b"short")
    os.replace(other, path)
    assert file.read(0, len(CONTENT)) == CONTENT
    file.check_unchanged()


def test_the_table_of_a_file_that_becomes_shorter_while_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama_gguf(tmp_path / "model.gguf")
    actual = ModelFile.__init__

    def opened(self: ModelFile, where: Path) -> None:
        actual(self, where)
        os.truncate(where, 200)

    monkeypatch.setattr(ModelFile, "__init__", opened)
    with pytest.raises(FileFormatError, match=r"model\.gguf: file at byte 0: changed while it was read"):
        open_gguf(path)


LOAD = """
import os, sys, pellucid
path, what = sys.argv[1:]
def change(_):
    size = os.path.getsize(path)
    if what == "shorten":
        os.truncate(path, size // 2)
    elif what == "empty":
        os.truncate(path, 0)
    else:
        with open(path, "r+b") as file:
            file.seek(size - 100)
            file.write(b"something else")
        os.utime(path, ns=(0, 0))
try:
    pellucid.load(sys.argv[1].removesuffix("/model.safetensors"), threads=1, before=change)
except pellucid.errors.FileFormatError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
@pytest.mark.parametrize("what", ["shorten", "empty", "write"])
def test_loading_a_file_that_changes_after_it_was_opened(tmp_path: Path, kind: str, what: str) -> None:
    if kind == "gguf":
        shapes = {**LLAMA_GGUF_SHAPES, "token_embd.weight": (320, 32)}
        path = write_llama_gguf(tmp_path / "model.gguf", LLAMA_GGUF | gguf_tokenizer(), shapes)
    else:
        path = write_llama(tmp_path / "tiny") / "model.safetensors"
        write_tokenizer(path.parent)
    command = python(LOAD, str(path), what)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith(f"{path.name}: file"), done.stdout
    assert "changed while it was read" in done.stdout
    assert done.stdout.count("\n") == 1
