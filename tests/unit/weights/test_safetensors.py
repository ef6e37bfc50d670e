"""The safetensors reader and `open_checkpoint` read valid files and refuse all others."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_files import gguf, safetensors, safetensors_raw

from pellucid.errors import FileFormatError
from pellucid.weights import json_files
from pellucid.weights.open import open_checkpoint
from pellucid.weights.safetensors import open_safetensors

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
SMALL = safetensors(
    {"w": ("F32", (2, 3), WEIGHT.tobytes()), "ids": ("I64", (1,), bytes(8)), "none": ("F16", (0, 4), b"")}, format="pt"
)


def folder_with(folder: Path, **files: bytes | str) -> Path:
    """Write a config.json and these files to ``folder``; two underscores in a name stand for a dot."""
    (folder / "config.json").write_text('{"model_type": "bert"}')
    for name, data in files.items():
        (folder / name.replace("__", ".")).write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def refused(path: Path) -> FileFormatError:
    with pytest.raises(FileFormatError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("named", ["", "model.safetensors"])
def test_reads_tensors_and_config(tmp_path: Path, named: str) -> None:
    folder = folder_with(tmp_path, model__safetensors=SMALL)
    with open_safetensors(folder / named) as model:
        assert (model.kind, model.path, model.metadata) == ("safetensors", folder, {"model_type": "bert"})
        assert {name: (t.format, t.shape) for name, t in model.tensors.items()} == {
            "w": ("F32", (2, 3)),
            "ids": ("I64", (1,)),
            "none": ("F16", (0, 4)),
        }
        np.testing.assert_array_equal(model.data("w").view(np.float32).reshape(2, 3), WEIGHT)
        assert model.data("none").size == 0
        assert not model.data("w").flags.writeable


def test_header_may_be_padded_with_spaces(tmp_path: Path) -> None:
    header = {"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
    folder = folder_with(tmp_path, model__safetensors=safetensors_raw(json.dumps(header).encode() + b"   ", b"ab"))
    assert open_safetensors(folder).data("w").tobytes() == b"ab"


def test_config_is_required(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SMALL)
    assert "config.json: file: is missing beside model.safetensors" in str(refused(path))


def sharded(folder: Path, weight_map: Any, name: str = "model.safetensors.index.json") -> Path:
    folder_with(folder)
    (folder / "a.safetensors").write_bytes(safetensors({"x": ("U8", (1,), b"x")}))
    (folder / "b.safetensors").write_bytes(safetensors({"y": ("U8", (1,), b"y")}))
    (folder / name).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_sharded_model_opens_as_one(tmp_path: Path) -> None:
    folder = sharded(tmp_path, {"x": "a.safetensors", "y": "b.safetensors"})
    for path in (folder, folder / "model.safetensors.index.json"):
        with open_checkpoint(path) as model:  # type: ignore[attr-defined]
            assert {name: model.data(name).tobytes() for name in model.tensors} == {"x": b"x", "y": b"y"}


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"x": "../a.safetensors"}, "not the name of a .safetensors file in the same folder"),
        ({"x": "/etc/a.safetensors"}, "not the name"),
        ({"x": "C:a.safetensors"}, "not the name"),
        ({"x": "..\\a.safetensors"}, "not the name"),
        ({"x": "a.safetensors\0"}, "not the name"),
        ({"x": "config.json"}, "not the name"),
        ({"x": 3}, "not the name"),
        ({"y": "a.safetensors"}, "is not in a.safetensors"),
        ({"x": "absent.safetensors"}, "there is no file"),
        ([], "must map"),
        ({}, "must map"),
    ],
)
def test_hostile_index_is_refused(tmp_path: Path, weight_map: Any, words: str) -> None:
    assert words in str(refused(sharded(tmp_path, weight_map)))


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


HOSTILE: dict[str, tuple[Any, bytes, str]] = {
    "not JSON": (b"{]", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid UTF-8"),
    "nested deeply": (b'{"a":' + b"[" * 100_000, b"", "nested too deeply"),
    "digits": (b'{"a": ' + b"1" * 10_000 + b"}", b"", "not valid JSON"),
    "name twice": (b'{"w": {}, "w": {}}', b"", "appears twice"),
    "entry is no object": ({"w": 3}, b"", "exactly dtype"),
    "missing shape": ({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234", "exactly dtype"),
    "something more": ({"w": entry(x=1)}, b"1234", "exactly dtype"),
    "dtype unknown": ({"w": entry("Q4_0")}, b"1234", "Q4_0 is unknown; known are"),
    "dtype a list": ({"w": entry(["F32"])}, b"1234", "is unknown"),
    "shape negative": ({"w": entry(shape=[-1])}, b"1234", "shape"),
    "shape a float": ({"w": entry(shape=[1.0])}, b"1234", "shape"),
    "shape a bool": ({"w": entry(shape=[True])}, b"1234", "shape"),
    "shape huge": ({"w": entry(shape=[1 << 64])}, b"1234", "shape"),
    "rank huge": ({"w": entry(shape=[1] * 100)}, b"1234", "shape"),
    "product wraps": ({"w": entry(shape=[1 << 62, 4])}, b"1234", "shape"),
    "shape of other size": ({"w": entry(shape=[2])}, b"1234", "takes 8 bytes but data_offsets span 4"),
    "offsets descend": ({"w": entry(offsets=[4, 0])}, b"1234", "data_offsets"),
    "offsets three": ({"w": entry(offsets=[0, 2, 4])}, b"1234", "data_offsets"),
    "past the end": ({"w": entry()}, b"12", "2 bytes past the end"),
    "hole": ({"w": entry(offsets=[4, 8])}, b"12345678", "leaves a hole"),
    "overlap": ({"w": entry(), "v": entry(offsets=[2, 6])}, b"123456", "overlaps"),
    "data of nobody": ({"w": entry()}, b"123456", "2 bytes belong to no tensor"),
    "list": (b"[]", b"", "begins with"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused(tmp_path: Path, case: str) -> None:
    header, data, words = HOSTILE[case]
    folder = folder_with(tmp_path, model__safetensors=safetensors_raw(header, data))
    assert re.search(words, str(refused(folder / "model.safetensors")))


@pytest.mark.parametrize("length", [100_000_001, (1 << 64) - 1, 5000])
def test_lying_header_length_is_refused(tmp_path: Path, length: int) -> None:
    folder = folder_with(tmp_path, model__safetensors=struct.pack("<Q", length) + b"{" + bytes(50))
    assert "header length at byte 0" in str(refused(folder))


def test_limit_on_values_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MAX_VALUES", 5)
    assert "more than 5 values" in str(refused(folder_with(tmp_path, model__safetensors=SMALL)))


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    path = folder_with(tmp_path, model__safetensors=SMALL) / "model.safetensors"
    for size in range(len(SMALL) - 1, -1, -1):
        os.truncate(path, size)
        assert refused(path).offset is not None


@settings(max_examples=300, deadline=2000)
@given(changes=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_change_of_bytes_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    folder_with(folder, model__safetensors=bytes(data))
    try:
        with open_safetensors(folder) as model:
            for name, tensor in model.tensors.items():
                assert model.data(name).size == tensor.nbytes
    except FileFormatError:
        pass


GGUF = gguf({"general.architecture": "llama"}, {"w": ((4,), 0, bytes(16))})


def test_folder_with_one_gguf(tmp_path: Path) -> None:
    (tmp_path / "any.gguf").write_bytes(GGUF)
    (tmp_path / "README.md").write_text("hello")
    model = open_checkpoint(tmp_path)
    assert (model.kind, model.path) == ("gguf", tmp_path / "any.gguf")
    model.close()


def test_the_bytes_decide_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(GGUF)
    assert open_checkpoint(tmp_path / "blob").kind == "gguf"
    (folder_with(tmp_path) / "other").write_bytes(SMALL)
    assert open_checkpoint(tmp_path / "other").kind == "safetensors"


def test_folders_that_are_not_clear(tmp_path: Path) -> None:
    assert "holds no model" in str(refused(tmp_path))
    (tmp_path / "a.gguf").write_bytes(GGUF)
    (tmp_path / "b.gguf").write_bytes(GGUF)
    assert "name one: a.gguf, b.gguf" in str(refused(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(SMALL)
    assert "name the file to open" in str(refused(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).unlink()
    (tmp_path / "more.safetensors").write_bytes(SMALL)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert "holds 2 .safetensors files" in str(refused(tmp_path))


def test_other_kinds_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "convert it to safetensors or GGUF" in str(refused(path))
    path.write_bytes(b"hello, I am a text")
    assert "neither GGUF nor safetensors" in str(refused(path))
    path.write_bytes(b"")
    assert "is empty" in str(refused(path))
    assert "there is no file" in str(refused(tmp_path / "absent"))
    assert "cannot be read" in str(refused(Path("~no-such-user/m.gguf")))
    monkeypatch.chdir(tmp_path)
    path.unlink()
    assert str(refused(Path("."))).startswith(f"{tmp_path.name}: folder: holds no model")


@pytest.mark.model
def test_real_model() -> None:
    from pellucid.weights.store import resolve

    with open_checkpoint(resolve("minilm")) as model:  # type: ignore[attr-defined]
        assert model.metadata["hidden_size"] == 384
        assert model.tensors["embeddings.word_embeddings.weight"].shape == (30522, 384)
        assert np.isfinite(model.data("embeddings.LayerNorm.bias").view(np.float32)).all()
