"""Weights as float32 from a model's file: a part of a matrix is that part of the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny import TINY, opened

from pellucid.model.weight_map import Model
from pellucid.trace.traced_model import ModelWeights
from pellucid.weights.checkpoint import Checkpoint


@pytest.mark.parametrize("name", TINY)
def test_rows_of_a_matrix_are_rows_of_its_values(name: str) -> None:
    """Also of matrices that a file stores transposed, with others in one tensor, or as every second row of one."""
    with opened(TINY[name]) as (checkpoint, model):
        weights = ModelWeights(checkpoint, model)
        slots = [slot for slot in model.slots if _is_stored(checkpoint, model, slot)]
        matrices = {
            slot: whole for slot in slots if (whole := weights.values(slot)).ndim == 2 and len(whole) > 2
        }
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
