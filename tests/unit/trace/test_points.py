"""Every hook point has the value of its name in a transformers run (tests/oracles/trace_oracle.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.points import cosine, distance
from support.tiny import GOLDENS, TINY, model_runner, opened

from pellucid import pipeline
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.plan.bind import layouts
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.trace import Trace

FOLDER = GOLDENS.parent / "trace"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
CLOSE = 1e-4
"""Largest difference, relative to the range of a point's values."""
ALIKE = 0.99
"""Smallest cosine of a point's values with activations of 8 bits."""
LEAST = {
    "embed": 18, "position": 2, "position.angles": 13, "norm": 17, "project.logits": 17, "pool": 1, "normalize": 1,
    "residual": 40,
    "attention.norm": 15, "attention.q": 16, "attention.k": 15, "attention.v": 15, "attention.q_norm": 3,
    "attention.k_norm": 3, "attention.q_rotary": 12, "attention.k_rotary": 12, "attention.scores": 16,
    "attention.pattern": 16, "attention.heads": 16, "attention.output": 16, "attention.residual": 16,
    "attention.post_norm": 3, "attention.gated": 1, "attention.latent": 2, "feedforward.norm": 15,
    "feedforward.gate": 7, "feedforward.up": 10, "feedforward.hidden": 10, "feedforward.output": 18,
    "feedforward.post_norm": 3, "feedforward.router": 7, "feedforward.experts": 7, "feedforward.expert_weights": 7,
    "feedforward.experts.output": 7,
    "feedforward.shared.down": 6, "recurrent.norm": 4, "recurrent.gated": 5, "recurrent.scan": 4, "recurrent.decay": 4,
    "recurrent.conv": 1, "recurrent.output": 5, "recurrent.residual": 5,
}  # fmt: skip
"""Minimum number of occurrences of each point in the goldens."""

Arrays = Mapping[str, NDArray[Any]]


@cache
def golden(name: str) -> tuple[list[int], Arrays]:
    """Token ids of a golden, and its values by point."""
    with np.load(FOLDER / f"{name}.npz") as file:
        values = {key: file[key] for key in file.files if key not in ("input_ids", "made_with")}
        return file["input_ids"].tolist(), values


def traced(name: str, activation_bits: int, kv_dtype: str | None) -> Arrays:
    """Values of all points of a model for the golden's tokens."""
    ids, _ = golden(name)
    with opened(TINY[name]) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), activation_bits, kv_dtype)
    with model_runner(TINY[name], plan) as runner:
        trace = Trace(runner.plan.points, ["**"])
        watching = trace.watching()
        (recorder,) = watching.begin(ids)
        watching.keep(recorder)
        recorder.tokens = lambda: ids
        runner.forward([Chunk(BlockTable(), ids, len(ids) if runner.spec.head else 0, recorder=recorder)])
        return sorted_by_expert({point: trace[point][0] for point in trace})


def sorted_by_expert(points: dict[str, NDArray[Any]]) -> Arrays:
    """Sort the chosen experts and their values in ascending order, as in the goldens."""
    for experts in [point for point in points if point.endswith("feedforward.experts")]:
        order = points[experts].argsort(-1)
        for point in (experts, experts.replace("experts", "expert_weights")):
            points[point] = np.take_along_axis(points[point], order, -1)
        for point in [point for point in points if point.startswith(f"{experts}.")]:
            points[point] = np.take_along_axis(points[point], order[:, :, None], 1)
    return points


def kind(point: str) -> str:
    """Name of a point without its block and without the number of its table."""
    parts = point.split(".")
    return ".".join(parts[2:]) if parts[0] == "blocks" else point.rstrip(".0123456789")


@pytest.mark.parametrize("name", NAMES)
def test_points_are_what_transformers_computes(name: str) -> None:
    _, expected = golden(name)
    found = traced(name, MAX_ACTIVATION_BITS, "f32")
    assert not set(expected) - set(found), "values that are no points"
    for point in expected:
        if expected[point].dtype == np.int32:
            assert np.array_equal(found[point], expected[point]), point
    apart = {point: distance(found[point], expected[point]) for point in expected}
    worst = max(apart, key=lambda point: apart[point])
    shapes = f"{found[worst].shape} and {expected[worst].shape}"
    assert apart[worst] <= CLOSE, f"{worst}: {apart[worst]:.2g} of its range apart, shapes {shapes}"
    blocks = {point.split(".")[1] for point in expected if point.startswith("blocks.") and kind(point) != "residual"}
    for point in found.keys() - expected.keys():
        # Covered by values computed from them: the scan's result, the output of each expert.
        if kind(point).startswith(("recurrent.state.", "feedforward.experts.")):
            continue
        if point == "project.probabilities":
            raised = np.exp(expected["project.logits"].astype(np.float64))
            assert np.allclose(found[point], raised / raised.sum(-1, keepdims=True), rtol=1e-3), point
            continue
        if not point.startswith("blocks.") or point.split(".")[1] in blocks:
            assert kind(point) == "feedforward.residual", f"{point}: nothing to compare it with"
            assert np.array_equal(found[point], found[point.replace("feedforward.", "")]), point


@pytest.mark.parametrize("name", NAMES)
def test_points_are_near_with_8_bits_and_default_caches(name: str) -> None:
    _, expected = golden(name)
    found = traced(name, 8, None)
    alike = {point: cosine(found[point], expected[point]) for point in expected}
    worst = min(alike, key=lambda point: alike[point])
    assert alike[worst] >= ALIKE, f"{worst}: cosine {alike[worst]:.4f}"


def test_goldens_cover_every_kind_of_point() -> None:
    counts = Counter(kind(point) for name in NAMES for point in golden(name)[1])
    assert not {point: (counts[point], least) for point, least in LEAST.items() if counts[point] < least}
