"""MXFP4 in safetensors: blocks and scales are one tensor, in GGUF's order."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.model_files import safetensors

from pellucid.errors import FileFormatError
from pellucid.weights.open import open_checkpoint
from pellucid.weights.pack import decode
from pellucid.weights.safetensors import MXFP4Checkpoint

VALUES = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # OCP Microscaling 1.0, table 5: E2M1
SHAPE = (3, 5, 2)  # experts, rows, blocks in a row


def written(folder: Path, **tensors: tuple[str, np.ndarray]) -> Path:
    config: dict[str, Any] = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    kept = {name: (kind, array.shape, array.tobytes()) for name, (kind, array) in tensors.items()}
    (folder / "model.safetensors").write_bytes(safetensors(kept))
    return folder


def random_pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (*SHAPE, 16), np.uint8), rng.integers(100, 150, SHAPE, np.uint8)


def opened_files() -> list[str]:
    """The paths of this process's open files."""
    links = Path("/proc/self/fd").glob("*") if Path("/proc/self/fd").exists() else []
    found = []
    for link in links:
        with suppress(OSError):  # the folder itself
            found.append(os.readlink(link))
    return found


def decoded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """By the specification: two values in a byte, the first in its low half; a sign and an E2M1 number."""
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*SHAPE, 32)
    values = VALUES[codes & 7] * np.where(codes & 8, -1.0, 1.0)
    return np.asarray((values * 2.0 ** (scales.astype(int)[..., None] - 127)).reshape(*SHAPE[:-1], 64))


def test_values_are_those_of_the_specification(tmp_path: Path) -> None:
    blocks, scales = random_pair()
    alone = np.ones(2, np.float32)
    folder = written(tmp_path, w_blocks=("U8", blocks), w_scales=("U8", scales), b=("F32", alone))
    with_pairs = open_checkpoint(folder)
    assert isinstance(with_pairs, MXFP4Checkpoint)
    assert {name: tensor.shape for name, tensor in with_pairs.tensors.items()} == {"w_blocks": (3, 5, 64), "b": (2,)}
    assert np.array_equal(decode(with_pairs, "w_blocks"), decoded(blocks, scales))
    assert np.array_equal(decode(with_pairs, "b"), alone)
    with_pairs.close()


@given(st.integers(0, 30 * 17), st.integers(0, 30 * 17))
def test_any_bytes_of_the_tensor_can_be_read(tmp_path_factory: Any, first: int, last: int) -> None:
    folder = tmp_path_factory.getbasetemp() / "mxfp4"
    if not folder.exists():
        folder.mkdir()
        blocks, scales = random_pair()
        written(folder, w_blocks=("U8", blocks), w_scales=("U8", scales))
    checkpoint = open_checkpoint(folder)
    start, stop = sorted((first, last))
    out = np.empty(stop - start, np.uint8)
    checkpoint.read("w_blocks", start, out)
    assert np.array_equal(out, checkpoint.data("w_blocks")[start:stop])
    checkpoint.close()


@pytest.mark.parametrize(
    ("blocks", "scales", "said"),
    [
        (("U8", (3, 5, 2, 8)), ("U8", (3, 5, 2)), r"\(3, 5, 2, 8\)"),
        (("U8", (3, 5, 2, 16)), ("U8", (3, 5, 4)), r"\(3, 5, 4\)"),
        (("U8", (16,)), ("U8", ()), r"\(16,\)"),
        (("F32", (3, 5, 2, 16)), ("U8", (3, 5, 2)), "F32"),
        (("U8", (3, 5, 2, 16)), ("I8", (3, 5, 2)), "I8"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path: Path, blocks: Any, scales: Any, said: str) -> None:
    sizes = {"F32": np.float32, "U8": np.uint8, "I8": np.int8}
    made = {
        name: (kind, np.zeros(shape, sizes[kind]))
        for name, (kind, shape) in (("w_blocks", blocks), ("w_scales", scales))
    }
    folder = written(tmp_path, **made)
    with pytest.raises(FileFormatError, match=said):
        open_checkpoint(folder)
    assert not [one for one in opened_files() if one.startswith(str(folder))]


def test_blocks_without_scales_are_a_tensor_of_bytes(tmp_path: Path) -> None:
    blocks, scales = random_pair()
    with_one = open_checkpoint(written(tmp_path, w_blocks=("U8", blocks), v_scales=("U8", scales)))
    assert with_one.tensors["w_blocks"].format == "U8"
    assert with_one.tensors["w_blocks"].shape == blocks.shape
    assert bytes(with_one.data("w_blocks")) == blocks.tobytes()
    with_one.close()


def test_pairs_without_experts(tmp_path: Path) -> None:
    made = {"w_blocks": ("U8", np.zeros((0, 5, 2, 16), np.uint8)), "w_scales": ("U8", np.zeros((0, 5, 2), np.uint8))}
    empty = open_checkpoint(written(tmp_path, **made))
    assert empty.tensors["w_blocks"].shape == (0, 5, 64)
    assert empty.data("w_blocks").size == 0
    empty.close()


def test_a_pair_in_two_files(tmp_path: Path) -> None:
    """Blocks and scales of the published files may be in different shards."""
    blocks, scales = random_pair()
    written(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    files = {"one.safetensors": ("w_blocks", blocks), "two.safetensors": ("w_scales", scales)}
    for file, (name, array) in files.items():
        (tmp_path / file).write_bytes(safetensors({name: ("U8", array.shape, array.tobytes())}))
    index = {"weight_map": {name: file for file, (name, _) in files.items()}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = open_checkpoint(tmp_path)
    assert np.array_equal(decode(sharded, "w_blocks"), decoded(blocks, scales))
    sharded.close()
