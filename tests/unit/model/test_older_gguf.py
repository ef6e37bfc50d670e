"""GGUF files of older converters load like current files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.reference import Reference
from support.tiny import model_runner, opened

from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint
from pellucid.weights.quant.format import lookup
from pellucid.weights.written import Written, write_gguf

IDS = [(7 * i + 3) % 256 for i in range(20)]


def q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blocks of 32 values: a float16 scale, and 32 numbers of 8 bits."""
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    numbers = np.rint(blocks / scales.astype(np.float32)).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), numbers.view(np.uint8)], axis=1).reshape(-1)


def older(newer: Path, path: Path, form: str) -> Path:
    """Write the file with keys and values in one tensor: for each head the key's rows, then the value's rows."""
    with open_checkpoint(newer) as checkpoint:
        metadata, tensors = dict(checkpoint.metadata), {}
        for name, tensor in checkpoint.tensors.items():
            data = checkpoint.data(name).copy()
            if name.endswith("attn_k_b.weight"):
                other = name.replace("attn_k_b", "attn_v_b")
                keys = data.view("<f4").reshape(tensor.shape).swapaxes(1, 2)
                values = checkpoint.data(other).view("<f4").reshape(checkpoint.tensors[other].shape)
                joined = np.ascontiguousarray(np.concatenate([keys, values], axis=1))
                raw = joined.reshape(-1).view(np.uint8) if form == "F32" else q8_0(joined)
                shape = (joined.shape[0] * joined.shape[1], joined.shape[2])
                tensors[name.replace("attn_k_b", "attn_kv_b")] = Written(shape, lookup(form, name), lambda raw=raw: raw)
            elif not name.endswith("attn_v_b.weight"):
                tensors[name] = Written(tensor.shape, lookup(tensor.format, name), lambda data=data: data)
    for length in ("key_length", "value_length"):
        key = f"deepseek2.attention.{length}"
        metadata[key] = metadata.pop(f"{key}_mla")
    metadata["deepseek2.attention.head_count_kv"] = metadata["deepseek2.attention.head_count"]
    write_gguf(path, metadata, tensors)
    return path


def logits(path: Path) -> NDArray[np.float32]:
    with model_runner(path) as net:
        return net.forward([Chunk(BlockTable(), IDS, outputs=len(IDS))]).copy()


@pytest.mark.parametrize("form", ["F32", "Q8_0"])
def test_keys_and_values_of_latent_attention_from_one_tensor(form: str, tmp_path: Path) -> None:
    newer = random_model("deepseek2", tmp_path / "newer.gguf")
    path = older(newer, tmp_path / "older.gguf", form)
    got, wanted = logits(path), logits(newer)
    if form == "F32":
        assert np.array_equal(got, wanted)
    else:
        assert 0 < np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    with opened(path) as (checkpoint, model):
        reference = Reference(checkpoint, model).logits(IDS)
    np.testing.assert_allclose(got, reference, rtol=0, atol=2e-4 * np.abs(reference).max())
