"""The last stage: sentence vectors have length 1 where the spec says so."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from support.tiny import TINY, model_runner, opened

from pellucid import pipeline
from pellucid.model.outputs import Pooling
from pellucid.plan.weights import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable


def vector(pooling: Pooling | None) -> np.ndarray:
    """The vector of a text, of the tiny BERT with this pooling."""
    with opened(TINY["bert"]) as (checkpoint, model):
        plan = pipeline.build_plan(replace(model.spec, pooling=pooling), layouts(checkpoint, model), 24)
    with model_runner(TINY["bert"], plan) as runner:
        return runner.forward([Chunk(BlockTable(), [3, 1, 4, 1, 5], 0)])[0].astype(np.float64)


def test_vectors_have_length_1_where_the_spec_says_so() -> None:
    scaled, plain = vector(Pooling()), vector(Pooling(normalize=False))
    assert np.linalg.norm(scaled) == pytest.approx(1.0, abs=1e-6)
    assert abs(np.linalg.norm(plain) - 1.0) > 0.01
    assert plain / np.linalg.norm(plain) == pytest.approx(scaled, abs=1e-6)
    assert np.array_equal(vector(None), plain)
