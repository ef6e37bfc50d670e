"""Weights as float32 from a model's file: a part of a matrix is that part of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny import TINY, opened

from pellucid.model.weight_map import Model
from pellucid.trace import traced_model
from pellucid.trace.traced_model import ModelWeights
from pellucid.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("name", TINY)
def test_rows_of_a_matrix_are_rows_of_its_values(name: str) -> None:
    """Also of matrices that a file stores transposed, with others in one tensor, or as every second row of one."""
    with opened(TINY[name]) as (checkpoint, model):
        weights = ModelWeights(checkpoint, model)
        slots = [slot for slot in model.slots if _is_stored(checkpoint, model, slot)]
        matrices = {slot: whole for slot in slots if (whole := weights.values(slot)).ndim == 2 and len(whole) > 2}
        assert matrices
        for slot, whole in matrices.items():
            for start, stop in ((0, len(whole)), (1, 3), (len(whole) - 1, len(whole))):
                part = weights.rows(slot, start, stop)
                np.testing.assert_array_equal(part, whole[start:stop], f"{slot}[{start}:{stop}]")


def _is_stored(checkpoint: Checkpoint, model: Model, slot: str) -> bool:
    """True if the file has the tensors of a slot. Others are computed."""
    return all(source.tensor in checkpoint.tensors for source in model.sources(slot))


def test_a_missing_vector_is_filled() -> None:
    with opened(TINY["llama"]) as (checkpoint, model):
        weights = ModelWeights(checkpoint, model)
        assert weights.vector("norm.weight", 64, 7.0).shape == (64,)
        assert weights.vector("no.such.slot", 3, 7.0).tolist() == [7.0, 7.0, 7.0]
        assert not weights.has("no.such.slot")


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma3n-odd", "gpt2"])
def test_products_have_the_same_bits_on_any_number_of_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And for any other rows: of a part of the rows, and in several parts. Without room NumPy computes them."""
    monkeypatch.setattr(traced_model, "SMALL", 1)
    rng = np.random.default_rng(5)
    with opened(TINY[name]) as (checkpoint, model):
        one, three, none = (
            ModelWeights(checkpoint, model, keep, threads) for keep, threads in ((1 << 24, 1), (1 << 24, 3), (0, 3))
        )
        slots = [slot for slot in model.slots if _is_stored(checkpoint, model, slot)]
        matrices = [slot for slot in slots if one.values(slot).ndim == 2][:12]
        for slot in matrices:
            matrix = one.values(slot)
            x = rng.standard_normal((37, len(matrix) + 3)).astype(np.float32)
            found = one.product(x, slot)
            exact = x[:, : len(matrix)].astype(np.float64) @ matrix.astype(np.float64)
            np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())
            np.testing.assert_array_equal(three.product(x, slot), found)
            np.testing.assert_array_equal(three.product(x[5:6], slot), found[5:6])
            np.testing.assert_allclose(none.product(x, slot), exact, atol=1e-5 * np.abs(exact).max())
            with monkeypatch.context() as changed:
                changed.setattr(traced_model, "PADDED", 8)
                np.testing.assert_array_equal(three.product(x, slot), found)
    assert matrices
