"""Jacobian lenses equal the automatic differentiation of torch; published files are read, and hostile files refused."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lettered import lettered_llm
from support.tiny import GOLDENS

from pellucid.errors import FileFormatError, InvalidRequest
from pellucid.trace import JacobianLens, logit_lens
from pellucid.trace.backward.jacobian_lens import TorchArchive

FOLDER = GOLDENS.parent / "jacobian_lens"
GOLDEN = np.load(FOLDER / "lenses.npz")
NAMES = sorted({key.split("/")[0] for key in GOLDEN})


@pytest.mark.parametrize("name", NAMES)
def test_jacobians_are_those_of_torch(name: str, tmp_path: Path) -> None:
    """The greatest error is 1e-4 of the range."""
    with lettered_llm(name, tmp_path) as llm:
        lens = JacobianLens.fit(llm, GOLDEN[f"{name}/ids"].tolist(), skip=2)
    layers = [int(key.split("/")[1]) for key in GOLDEN if key.startswith(f"{name}/") and not key.endswith("ids")]
    assert list(lens.jacobians) == sorted(layers)
    assert lens.texts == 2
    for layer in layers:
        expected = GOLDEN[f"{name}/{layer}"]
        assert np.abs(lens.jacobians[layer] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_files(tmp_path: Path) -> None:
    """The reference code's file, and our own."""
    lens = JacobianLens.open(FOLDER / "lens.pt")
    expected = GOLDEN["llama/0"]
    assert lens.texts == 2
    assert np.abs(lens.jacobians[0] - expected).max() <= 1e-3 * np.abs(expected).max()
    lens.save(tmp_path / "lens.safetensors")
    again = JacobianLens.open(tmp_path / "lens.safetensors")
    assert again.texts == 2
    assert np.array_equal(again.jacobians[0], lens.jacobians[0])
    with pytest.raises(InvalidRequest, match="must end with"):
        JacobianLens.open(tmp_path / "lens.bin")


def test_the_lens_reads_transported_vectors(tmp_path: Path) -> None:
    """An identity is the logit lens; another matrix moves the rows before the last norm and head."""
    with lettered_llm("llama", tmp_path) as llm:
        ids, width = [3, 17, 90, 41], llm.spec.embedding.width
        plain = logit_lens(llm, ids)
        same = logit_lens(llm, ids, transport=JacobianLens({0: np.eye(width, dtype=np.float32)}, 1))
        assert same.layers == plain.layers[1:]
        assert np.array_equal(same.ids, plain.ids[1:])
        lens = JacobianLens.open(FOLDER / "lens.pt")
        with llm.trace("blocks.0.residual") as trace:
            llm.generate(ids, max_new_tokens=1)
        moved = llm.project(lens(trace["blocks.0.residual"][0], 0))
        found = logit_lens(llm, ids, transport=lens)
        assert found.ids[0, :, 0].tolist() == moved.argmax(-1).tolist()
        assert np.array_equal(found.ids[-1], plain.ids[-1])
        with pytest.raises(InvalidRequest, match="vectors of"):
            logit_lens(llm, ids, transport=JacobianLens({0: np.eye(8, dtype=np.float32)}, 1))
        direction = lens.directions(0, np.eye(width)[5])
        assert np.allclose(direction[0], lens.jacobians[0][5])


def test_merged_lenses_are_the_lens_of_all_texts(tmp_path: Path) -> None:
    texts = GOLDEN["llama/ids"].tolist()
    with lettered_llm("llama", tmp_path) as llm:
        parts = [JacobianLens.fit(llm, [text], skip=2) for text in texts]
        short = [1, 2]
        whole = JacobianLens.fit(llm, [*texts, short], skip=2)
        with pytest.raises(InvalidRequest, match="no text has 18 tokens"):
            JacobianLens.fit(llm, texts)
        with pytest.raises(InvalidRequest, match="layers"):
            JacobianLens.fit(llm, texts, layers=[1], skip=2)
        with pytest.raises(InvalidRequest, match="budget"):
            JacobianLens.fit(llm, texts, skip=2, budget=10)
    merged = JacobianLens.merged(parts)
    assert merged.texts == whole.texts == 2
    assert np.allclose(merged.jacobians[0], whole.jacobians[0], atol=1e-6)
    with pytest.raises(InvalidRequest, match="same blocks"):
        JacobianLens.merged([merged, JacobianLens({1: merged.jacobians[0]}, 1)])


class _Call:
    """A value that a pickle makes by calling a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._made = function, arguments

    def __reduce__(self) -> Any:
        return self._made


def archive(path: Path, value: Any, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("lens/data.pkl", value if isinstance(value, bytes) else pickle.dumps(value, 2))
        for name, content in members.items():
            file.writestr(f"lens/data/{name}", content)
    return path


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (_Call(print, "executed"), "names"),
        (_Call(open, "/etc/passwd"), "names"),
        ({"J": {}}, "no matrices"),
        ({"J": {0: "x"}, "n_prompts": 1}, "a matrix for each block"),
        ({"weights": 3}, "no matrices"),
        (b"\x80\x02garbage", "data.pkl"),
        (b"", "data.pkl"),
        ([1, 2], "no matrices"),
    ],
)
def test_hostile_archives_are_refused(
    value: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = archive(tmp_path / "lens.pt", value)
    with pytest.raises(FileFormatError, match=said) as error:
        JacobianLens.open(path)
    assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    """Any cut and any changed byte of the pickle either leaves the matrices as they are, or is refused."""
    content = (FOLDER / "lens.pt").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pt").write_bytes(content[:size])
        with pytest.raises(FileFormatError):
            JacobianLens.open(tmp_path / "cut.pt")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(members[pickled]), 300).tolist():
        changed = bytearray(members[pickled])
        changed[at] ^= int(rng.integers(1, 256))
        path = tmp_path / "changed.pt"
        with zipfile.ZipFile(path, "w") as file:
            for name, own in members.items():
                file.writestr(name, bytes(changed) if name == pickled else own)
        with contextlib.suppress(FileFormatError):
            lens = JacobianLens.open(path)
            assert all(np.isfinite(own).all() for own in lens.jacobians.values())


def test_archives_with_other_sizes_are_refused(tmp_path: Path) -> None:
    content = (FOLDER / "lens.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    for way in ("missing", "short", "compressed"):
        path = tmp_path / f"{way}.pt"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED) as file:
            for name, own in members.items():
                is_data = name.endswith("data/0")
                if is_data and way == "missing":
                    continue
                file.writestr(name, own[:-2] if is_data and way == "short" else own)
        with pytest.raises(FileFormatError, match="data/0"):
            JacobianLens.open(path)
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(FileFormatError, match="no archive"):
        TorchArchive(tmp_path / "text.pt")
