"""Factors of smoothing: their formula, their bounds, and what they do for a model with a large column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.tiny import TINY, opened

import pellucid
from pellucid.model import slot_reader
from pellucid.model.read import convert_encoder
from pellucid.model.slot_reader import LARGEST, SlotReader, factors
from pellucid.testing import random_model
from pellucid.weights.pack import to_q8_0


def drawn(seed: int, rows: int, columns: int) -> tuple[NDArray[np.float32], ...]:
    rng = np.random.default_rng(seed)
    sizes = (columns,), (columns,), (rows, columns)
    norm, bias, matrix = (rng.standard_normal(size).astype(np.float32) for size in sizes)
    return norm, bias, matrix


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 70))
def test_factors_are_the_powers_of_sizes_and_weights(seed: int, rows: int, columns: int) -> None:
    norm, bias, matrix = drawn(seed, rows, columns)
    wide = matrix.astype(np.float64)
    want = (np.abs(norm, dtype=np.float64) + np.abs(bias)) ** 0.25 / (wide * wide).mean(0) ** 0.375
    assert np.allclose(factors(norm, bias, matrix), np.clip(want / want.mean(), 1 / LARGEST, LARGEST), 1e-6)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 1e38])
def test_columns_without_a_usable_size_have_a_finite_factor(value: float) -> None:
    norm, bias, matrix = drawn(0, 8, 6)
    matrix[:, 2] = value
    norm[4], bias[4] = value, 0
    found = factors(norm, bias, matrix)
    assert np.isfinite(found).all()
    assert ((found >= 1 / LARGEST) & (found <= LARGEST)).all()
    assert (factors(np.zeros_like(norm), np.zeros_like(bias), matrix) == 1).all()


def test_a_smoothed_matrix_has_the_factors_and_its_vector_their_inverses() -> None:
    with opened(TINY["bert"]) as (checkpoint, model):
        made = convert_encoder(checkpoint, model)

        def floats(slot: str) -> NDArray[np.float32]:
            return SlotReader(checkpoint, model.sources(slot)).values()

        norm = "blocks.0.feedforward.norm"
        values = floats("blocks.1.attention.v.weight")
        want = factors(floats(f"{norm}.weight"), floats(f"{norm}.bias"), values)
        assert want.std() > 0
        inverse = SlotReader(checkpoint, made.sources("blocks.1.attention.smoothing.weight")).values()
        assert np.array_equal(inverse, np.float32(1) / want)
        for name in "qkv":
            slot = f"blocks.1.attention.{name}.weight"
            reader = SlotReader(checkpoint, made.sources(slot))
            blocks = np.empty(np.prod(reader.blocks_shape), np.uint8)
            reader.read(0, blocks)
            assert np.array_equal(blocks, to_q8_0(floats(slot) * want).reshape(-1))


def test_a_large_column_no_longer_makes_its_neighbours_coarse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained encoders have such columns; their weights are small."""
    column, large = 5, 24.0
    path = random_model("bert", tmp_path / "bert", kind="safetensors", layers=2, width=64, heads=2)
    with opened(path) as (checkpoint, _):
        tensors = {name: (tensor.offset, tensor.shape) for name, tensor in checkpoint.tensors.items()}
        file = checkpoint.tensors[next(iter(tensors))].path
    for name, (offset, shape) in tensors.items():
        values = np.memmap(file, "<f4", "r+", offset, shape)
        if name.endswith("LayerNorm.weight"):
            values[column] *= large
        elif name.endswith(("query.weight", "key.weight", "value.weight", "intermediate.dense.weight")):
            values[:, column] /= large
    texts = ["the quick brown fox", "of the people, by the people", "a"] * 3

    def errors() -> float:
        with pellucid.load(path) as llm, pellucid.load(path, precise=True) as exact:
            got, want = llm.embed(texts), exact.embed(texts)
        return float(np.abs(got - want).max())

    smoothed = errors()
    monkeypatch.setattr(slot_reader, "factors", lambda norm, bias, matrix: np.ones_like(norm))
    assert smoothed * 1.5 < errors()
