"""The GGUF reader opens or refuses any file without other effects."""

from __future__ import annotations

import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.model_files import gguf, gguf_string, gguf_tensor, gguf_value
from support.systems import posix

from pellucid.errors import FileFormatError
from pellucid.weights import gguf as reader
from pellucid.weights import gguf_values
from pellucid.weights.gguf import open_gguf
from pellucid.weights.gguf_values import TENSOR_TYPES

F32, Q8_0 = 0, 8
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "u8", "i8", "f8")
WEIGHT = np.arange(8, dtype=np.float32).reshape(2, 4)
BLOCKS = bytes(range(68))  # 2 rows of one Q8_0 block
SMALL = gguf(
    {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "tokenizer.ggml.tokens": ["a", "", "▁the", "é"],
        "tokenizer.ggml.scores": np.array([1.5, -2.0], np.float32),
    },
    {"w": ((2, 4), F32, WEIGHT.tobytes()), "q": ((2, 32), Q8_0, BLOCKS)},
)


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def save(data: bytes, name: str = "m.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return save


def refused(path: Path) -> FileFormatError:
    with pytest.raises(FileFormatError) as caught:
        open_gguf(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_reads_tensors_in_row_major_order(save: Any) -> None:
    with open_gguf(save(SMALL)) as model:
        assert model.kind == "gguf"
        weight = model.tensors["w"]
        assert (weight.shape, weight.format, weight.nbytes) == ((2, 4), "F32", 32)
        view = model.data("w")
        assert not view.flags.writeable
        np.testing.assert_array_equal(view.view(np.float32).reshape(2, 4), WEIGHT)
        assert model.tensors["q"].format == "Q8_0"
        assert model.data("q").tobytes() == BLOCKS
        assert model.tensors["q"].offset % 32 == 0


def test_data_and_metadata_outlive_close(save: Any) -> None:
    model = open_gguf(save(SMALL))
    view, scores = model.data("w"), model.metadata["tokenizer.ggml.scores"]
    model.close()
    model.close()
    np.testing.assert_array_equal(view.view(np.float32), WEIGHT.ravel())
    np.testing.assert_array_equal(scores, np.array([1.5, -2.0], np.float32))


@pytest.mark.parametrize("version", [2, 3])
def test_reads_every_value_type(save: Any, version: int) -> None:
    values: dict[str, Any] = {
        "text": "Ω ≤ 1",
        "empty": "",
        "yes": True,
        "no": False,
        **{code: np.dtype(code).type(7) for code in NUMBERS},
    }
    model = open_gguf(save(gguf(values, {}, version=version)))
    assert dict(model.metadata) == values
    assert all(type(value) in (str, bool, int, float) for value in model.metadata.values())


@pytest.mark.parametrize("code", [*NUMBERS, "?"])
def test_number_arrays_are_numpy_arrays(save: Any, code: str) -> None:
    values = np.array([0, 1, 1], code)
    got = open_gguf(save(gguf({"x": "odd", "array": values}, {}))).metadata["array"]
    np.testing.assert_array_equal(got, values)
    assert got.dtype == values.dtype


def test_nested_arrays(save: Any) -> None:
    model = open_gguf(save(gguf({"nested": [["a", "b"], []], "empty": []}, {})))
    assert model.metadata["nested"] == [["a", "b"], []]
    assert model.metadata["empty"] == []


STRINGS = st.one_of(
    st.text(max_size=4),
    st.text("aé▁𝄞\0", max_size=8),
    st.integers(0, 600).map("x".__mul__),
    st.sampled_from(["", "\0", "\0" * 9, "\x01" + "\0" * 7, "ÿ", "a" * 255, "a" * 256]),
)


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.tuples(st.lists(STRINGS, max_size=6), st.integers(1, 900)), max_size=4))
def test_string_arrays_are_what_was_written(
    parts: list[tuple[list[str], int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    strings = [one for few, times in parts for one in few * times]
    path = tmp_path_factory.getbasetemp() / "strings.gguf"
    path.write_bytes(gguf({"x": "odd", "before": strings, "after": ["a", *strings]}, {}))
    with open_gguf(path) as model:
        assert model.metadata["before"] == strings
        assert model.metadata["after"] == ["a", *strings]


def test_short_arrays_cost_no_window(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may have 10^5 short arrays."""
    looked_at = []
    look = gguf_values.string_ends
    monkeypatch.setattr(gguf_values, "string_ends", lambda *given: looked_at.append(1) or look(*given))
    values = {f"k{i}": ["a"] for i in range(50)} | {"nested": [["a", "b"]] * 50, "some": ["b"] * 1000}
    assert dict(open_gguf(save(gguf(values, {}))).metadata) == values
    assert not looked_at
    open_gguf(save(gguf({"k": ["abc"] * 100_000}, {})))
    assert 0 < len(looked_at) < 10


@pytest.mark.parametrize("bad", [b"\xff", b"a\xffb", b"\xc3", b"\xed\xa0\x80"])
@pytest.mark.parametrize("at", [0, 1, 4999, 9999])
def test_invalid_string_in_a_long_array_is_named(save: Any, bad: bytes, at: int) -> None:
    strings = ["ab"] * 10_000
    data = gguf({"k": [*strings[:at], "?" * len(bad), *strings[at + 1 :]]}, {})
    place = data.index(b"?" * len(bad))
    error = refused(save(data[:place] + bad + data[place + len(bad) :]))
    assert f"k[{at}]" in str(error)
    assert "UTF-8" in str(error)
    assert place <= error.offset < place + len(bad)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_the_files_own(save: Any, alignment: int) -> None:
    tensors = {"a": ((3,), F32, bytes(12)), "b": ((1,), F32, b"1234")}
    model = open_gguf(save(gguf({"general.alignment": alignment}, tensors, alignment=alignment)))
    assert model.tensors["b"].offset % alignment == 0
    assert model.data("b").tobytes() == b"1234"


def test_formats_that_cannot_be_computed_yet_are_still_named_and_checked(save: Any) -> None:
    for code, block in TENSOR_TYPES.items():
        data = gguf({}, {"t": ((2, block.values), code, bytes(2 * block.nbytes))})
        tensor = open_gguf(save(data)).tensors["t"]
        assert (tensor.format, tensor.nbytes) == (block.name, 2 * block.nbytes)
        assert "past the end" in str(refused(save(data[:-1])))


def test_unknown_tensor_is_an_error_with_its_name(save: Any) -> None:
    with pytest.raises(FileFormatError, match=r"tensor output\.weight: is not in this file"):
        open_gguf(save(SMALL)).data("output.weight")


def test_truncation_anywhere_is_refused_with_field_and_offset(save: Any) -> None:
    path = save(SMALL)
    for size in range(len(SMALL) - 1, 0, -1):
        os.truncate(path, size)
        error = refused(path)
        assert error.offset is not None
        assert error.offset <= size
    os.truncate(path, 0)
    assert "empty" in str(refused(path))


U64 = (1 << 64) - 1


def header(tensors: int, keys: int, rest: bytes = b"", magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys) + rest


def one_key(value: bytes, key: str | bytes = "k") -> bytes:
    return header(0, 1, gguf_string(key) + value)


def one_tensor(name: str | bytes, dims: list[int], code: int, offset: int, data: bytes = bytes(4096)) -> bytes:
    return header(1, 0, gguf_tensor(name, dims, code, offset) + data)


HOSTILE = {
    "not gguf": (header(0, 0, magic=b"GGML"), "magic", 0),
    "version 1": (header(0, 0, version=1), "version", 4),
    "version 4": (header(0, 0, version=4), "version", 4),
    "big endian": (header(0, 0, version=3 << 24), "big-endian", 4),
    "tensor count": (header(U64, 0, bytes(100)), "tensor count", 8),
    "metadata count": (header(0, U64, bytes(100)), "metadata count", 16),
    "count that just does not fit": (header(0, 8, bytes(14 * 8 - 1)), "metadata count", 16),
    "key length": (header(0, 1, struct.pack("<Q", U64) + bytes(99)), "metadata key 0", 24),
    "empty key": (one_key(gguf_value(1), ""), "metadata key 0", 24),
    "key not UTF-8": (one_key(gguf_value(1), b"a\xff"), "UTF-8", 33),
    "key twice": (header(0, 2, 2 * (gguf_string("k") + gguf_value(1))), "appears twice", 41),
    "value type": (one_key(struct.pack("<IQ", 13, 0)), "k", 33),
    "string length": (one_key(struct.pack("<IQ", 8, U64) + bytes(9)), "k", 45),
    "string not UTF-8": (one_key(gguf_value(b"ab\xc3(")), "k", 47),
    "token not UTF-8": (one_key(gguf_value(["ok", b"\x80"])), r"k\[1\]", 67),
    "bool of 2": (one_key(struct.pack("<IB", 7, 2)), "k", 37),
    "bool array of 2": (one_key(struct.pack("<IIQ2B", 9, 7, 2, 1, 2)), "k", 50),
    "array type": (one_key(struct.pack("<IIQQ", 9, 99, 1, 0)), "k", 37),
    "array of numbers": (one_key(struct.pack("<IIQQ", 9, 10, U64 // 8, 0)), "k", 49),
    "array of strings": (one_key(struct.pack("<IIQQ", 9, 8, 1 << 40, 0)), "k", 49),
    "array of arrays": (one_key(struct.pack("<IIQQ", 9, 9, 1 << 40, 0)), "k", 49),
    "string in an array": (one_key(struct.pack("<IIQQ", 9, 8, 1, U64) + bytes(9)), r"k\[0\]", 57),
    "nesting": (one_key(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9 + bytes(99)), "nested deeper", None),
    "alignment of 3": (one_key(struct.pack("<II", 4, 3), "general.alignment"), "power of two", None),
    "alignment of 0": (one_key(struct.pack("<II", 4, 0), "general.alignment"), "power of two", None),
    "alignment text": (one_key(gguf_value("32"), "general.alignment"), "integer", None),
    "split text": (one_key(gguf_value("two"), "split.count"), "integer", None),
    "split array": (one_key(gguf_value(np.arange(3)), "split.count"), "integer", None),
    "rank": (one_tensor("t", [1] * 5, F32, 0), "rank", 33),
    "rank of billions": (header(1, 0, gguf_string("t") + struct.pack("<I", 1 << 31) + bytes(99)), "rank", 33),
    "zero in dims": (one_tensor("t", [4, 0], F32, 0), "dims", 37),
    "dims multiply over": (one_tensor("t", [1 << 32, 1 << 32], F32, 0), "dims", 37),
    "dims multiply to 2^64 + small": (one_tensor("t", [U64, U64, U64, U64], F32, 0), "dims", 37),
    "row not whole blocks": (one_tensor("t", [33], Q8_0, 0), "multiple of Q8_0", 37),
    "type unknown": (one_tensor("t", [32], 1000, 0), "type", 45),
    "type dropped": (one_tensor("t", [32], 31, 0), "Q4_0_4_4", 45),
    "offset not aligned": (one_tensor("t", [4], F32, 8), "multiple of 32", 49),
    "offset past the end": (one_tensor("t", [4], F32, 1 << 40), "past the end", 49),
    "offset that wraps": (one_tensor("t", [4], F32, U64 - 31), "past the end", 49),
    "extent past the end": (one_tensor("t", [1 << 20], F32, 0), "past the end", 49),
    "name empty": (one_tensor("", [4], F32, 0), "tensor 0 name", 24),
    "name not UTF-8": (one_tensor(b"\xfe", [4], F32, 0), "UTF-8", 32),
    "name twice": (header(2, 0, 2 * gguf_tensor("t", [4], F32, 0) + bytes(99)), "appears twice", 57),
    "overlap": (
        header(2, 0, gguf_tensor("t", [16], F32, 0) + gguf_tensor("u", [4], F32, 32) + bytes(999)),
        "overlaps tensor t",
        82,
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused_with_field_and_offset(save: Any, case: str) -> None:
    data, words, offset = HOSTILE[case]
    error = refused(save(data))
    assert re.search(words, str(error)), str(error)
    assert error.offset == offset or offset is None


def test_limits_on_time_and_memory_hold(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_KEYS", 1)
    monkeypatch.setattr(reader, "MAX_TENSORS", 1)
    assert "above the limit" in str(refused(save(SMALL)))
    monkeypatch.undo()
    monkeypatch.setattr(reader, "MAX_ENTRIES", 3)
    assert "above the limit" in str(refused(save(SMALL)))
    monkeypatch.undo()
    monkeypatch.setattr(reader, "MAX_METADATA", 100)
    assert "limit of 100 for metadata" in str(refused(save(SMALL)))


def test_control_characters_do_not_reach_the_terminal(save: Any) -> None:
    error = refused(save(one_tensor("\x1b[2J\n" + "x" * 200, [33], Q8_0, 0)))
    assert "\x1b" not in str(error)
    assert len(str(error)) < 250


@posix
def test_unreadable_paths_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in str(refused(tmp_path / "absent.gguf"))
    assert "is a folder" in str(refused(tmp_path))
    assert "cannot be read" in str(refused(Path("a\0b")))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
        assert "not a regular file" in str(refused(tmp_path / "pipe"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(save: Any) -> None:
    path = save(SMALL)
    path.chmod(0)
    assert "cannot be read" in str(refused(path))


@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(SMALL)),
)
def test_any_change_of_bytes_opens_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(bytes(data[: cut or len(data)]))
    try:
        with open_gguf(path) as model:
            for name, tensor in model.tensors.items():
                assert model.data(name).size == tensor.nbytes
    except FileFormatError:
        pass


def split_files(folder: Path, **override: Any) -> list[Path]:
    keys = {"split.count": np.uint16(2), "split.tensors.count": np.int32(2), **override}
    first = gguf({"split.no": np.uint16(0), **keys, "arch": "x"}, {"a": ((1,), F32, b"aaaa")})
    second = gguf({"split.no": np.uint16(1), **keys}, {"b": ((1,), F32, b"bbbb")})
    paths = [folder / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for path, data in zip(paths, (first, second)):
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize("named", [0, 1])
def test_split_model_opens_as_one(tmp_path: Path, named: int) -> None:
    paths = split_files(tmp_path)
    with open_gguf(paths[named]) as model:
        assert model.metadata["arch"] == "x"
        assert model.path == paths[0]
        assert {name: model.data(name).tobytes() for name in model.tensors} == {"a": b"aaaa", "b": b"bbbb"}


def test_split_model_that_does_not_fit_together(tmp_path: Path) -> None:
    paths = split_files(tmp_path, **{"split.tensors.count": np.int32(3)})
    assert "split.tensors.count" in str(refused(paths[0]))
    paths = split_files(tmp_path, **{"split.count": np.uint16(3)})
    assert "is 3, but the file name states 2" in str(refused(paths[0]))
    split_files(tmp_path)
    shutil.copy(paths[0], paths[1])
    assert "split.no" in str(refused(paths[0]))
    split_files(tmp_path)
    shutil.copy(paths[0], tmp_path / "alone.gguf")
    assert "NAME-00001-of-00003.gguf" in str(refused(tmp_path / "alone.gguf"))
    paths[1].unlink()
    assert "there is no file" in str(refused(paths[0]))


@pytest.mark.model
def test_real_model_truncated_at_50_offsets(tmp_path: Path) -> None:
    from pellucid.weights.store import resolve

    path = tmp_path / "m.gguf"
    shutil.copy(resolve("smollm2"), path)
    size = path.stat().st_size
    with open_gguf(path) as model:
        assert model.metadata["general.architecture"] == "llama"
        assert len(model.metadata["tokenizer.ggml.tokens"]) == 49152
        assert model.tensors["token_embd.weight"].shape == (49152, 576)
    near, far = np.geomspace(3, size // 2, 25), np.linspace(size // 2 + 1, size - 1, 25)  # from the start
    offsets = {int(offset) for offset in (*near, *far)}
    assert len(offsets) == 50
    for offset in sorted(offsets, reverse=True):
        os.truncate(path, offset)
        assert refused(path).offset is not None
