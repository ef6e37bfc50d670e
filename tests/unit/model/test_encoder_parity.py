"""Each encoder and each head on tiny random models, against transformers (tests/oracles/encoders_oracle.py)."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from support.tiny import ENCODERS, model_runner, opened

from pellucid import pipeline
from pellucid.model.family import known_families
from pellucid.model.shapes import expected_shapes
from pellucid.model.spec import ModelSpec
from pellucid.plan.bind import layouts
from pellucid.plan.plan import Vector, Weights
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable


def rows_only(spec: ModelSpec) -> ModelSpec:
    """The spec of the body: the golden outputs of a model without a head are the last hidden states."""
    return replace(spec, pooling=None, output=(), task="tokens") if spec.task == "embed" else spec


def outputs_of(name: str, activation_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Our outputs and the golden outputs of a model."""
    with np.load(ENCODERS[name] / "expected.npz") as file:
        ids, wanted = file["input_ids"].tolist(), file["outputs"]
        types = file["type_ids"].tolist() if "type_ids" in file else None
    with opened(ENCODERS[name]) as (checkpoint, model):
        spec = rows_only(model.spec)
        plan = pipeline.build_plan(spec, layouts(checkpoint, model), activation_bits)
        with model_runner(ENCODERS[name], plan, spec=spec, threads=2) as runner:
            return runner.forward([Chunk(BlockTable(), ids, len(wanted), types=types)]), wanted


@pytest.mark.parametrize("name", ENCODERS)
def test_precise_outputs_equal_transformers(name: str) -> None:
    got, wanted = outputs_of(name, 24)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ENCODERS)
def test_default_outputs_point_the_same_way(name: str) -> None:
    got, wanted = outputs_of(name, 8)
    cosines = (got * wanted).sum(-1) / np.linalg.norm(got, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("name", ENCODERS)
def test_plan_uses_every_slot_of_the_spec_and_no_other(name: str) -> None:
    with opened(ENCODERS[name]) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model))
    values = [value for op in plan.with_setup for value in op.fields.values()]
    values += [vector for table in plan.tables.values() for vector in table.learned]
    assert {v.slot for v in values if isinstance(v, (Weights, Vector))} == set(expected_shapes(model.spec))


def test_every_name_begins_with_a_family() -> None:
    assert {name.partition("-")[0] for name in ENCODERS} <= set(known_families())
