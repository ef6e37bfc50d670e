"""A plan before any pass computes what transformers computes, for the tiny models of every family."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from support.tiny import DECODERS, TINY, model_runner, opened, table_for

from pellucid.pipeline import unoptimized_plan
from pellucid.plan.bind import layouts
from pellucid.plan.passes import place_barriers
from pellucid.runtime.batch import Chunk


@pytest.mark.parametrize("name", [name for name in DECODERS if not name.endswith("-mxfp4")])
def test_logits_are_those_of_transformers(name: str) -> None:
    with np.load(TINY[name] / "expected.npz") as file:
        ids, expected = file["input_ids"].tolist(), file["logits"]
    with opened(TINY[name]) as (checkpoint, model):
        plan = unoptimized_plan(model.spec, layouts(checkpoint, model), 24)
    plan = replace(plan, operations=tuple(place_barriers(list(plan.operations))))
    with model_runner(TINY[name], plan) as runner:
        logits = runner.forward([Chunk(table_for(runner.spec, len(ids)), ids, outputs=len(ids))])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
