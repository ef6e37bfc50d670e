"""The parts after the last block: pooling, output layers and heads, against the hidden states of the body."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from support.tiny import TINY, model_runner, opened

from pellucid import pipeline
from pellucid.kernels.ops.pooling import normalize_reference, pool_reference
from pellucid.model.outputs import Pooling, UnitLength
from pellucid.model.read import read_model
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.testing import random_model
from pellucid.weights.open import open_checkpoint

TEXTS = [[3, 1, 4, 1, 5], [9, 2, 6], [7]]


def outputs_of(**changes: Any) -> np.ndarray:
    """The outputs of three texts in a step, of the tiny BERT with changed output parts."""
    with opened(TINY["bert"]) as (checkpoint, model):
        spec = replace(model.spec, **changes)
        plan = pipeline.build_plan(spec, layouts(checkpoint, model), 24)
    with model_runner(TINY["bert"], plan, spec=spec) as runner:
        return runner.forward([Chunk(BlockTable(), ids, 0 if spec.pooling else len(ids)) for ids in TEXTS])


def test_a_vector_has_length_1_with_a_normalize_layer_only() -> None:
    scaled, plain = (outputs_of(pooling=Pooling(), output=layers) for layers in ((UnitLength(),), ()))
    assert np.linalg.norm(scaled, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert (np.abs(np.linalg.norm(plain, axis=1) - 1.0) > 0.01).all()
    np.testing.assert_allclose(scaled, normalize_reference(plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "mean_sqrt", "weighted", "max"])
def test_pooling_joins_the_rows_of_each_text(kind: str) -> None:
    rows = outputs_of(pooling=None, output=())
    wanted = pool_reference(rows, [len(ids) for ids in TEXTS], kind)
    np.testing.assert_allclose(outputs_of(pooling=Pooling(kind), output=()), wanted, rtol=0, atol=2e-6)


def test_cls_is_the_first_row_and_last_the_last_row() -> None:
    rows, ends = outputs_of(pooling=None, output=()), np.cumsum([len(ids) for ids in TEXTS])
    first = outputs_of(pooling=Pooling("cls"), output=())
    np.testing.assert_array_equal(first, rows[[0, *ends[:-1]]])
    with opened(TINY["bert"]) as (checkpoint, model):
        spec = replace(model.spec, pooling=Pooling("last"), output=())
        plan = pipeline.build_plan(spec, layouts(checkpoint, model), 24)
    with model_runner(TINY["bert"], plan, spec=spec) as runner:
        last = runner.forward([Chunk(BlockTable(), ids, 1) for ids in TEXTS])
    np.testing.assert_array_equal(last, rows[ends - 1])


def test_the_bits_of_activations_of_an_encoder_with_quantized_weights(tmp_path: Path) -> None:
    """The first products of a feed-forward are sensitive (decision 3), its last product is not."""
    with open_checkpoint(random_model("bert", tmp_path / "bert.gguf", form="Q8_0")) as checkpoint:
        model = read_model(checkpoint)
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), 8)
    bits = {one.stage: dict(one.kernel.parameters).get("activation_bits") for one in plan.operations}
    assert [bits[f"blocks.{layer}.feedforward.{part}"] for layer in (0, 1) for part in ("up", "down")] == [16, 8] * 2
