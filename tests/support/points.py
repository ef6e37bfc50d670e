"""The values of the points of a model, and measures of their difference from expected values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid import pipeline
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.plan.bind import layouts
from pellucid.plan.points import Point
from pellucid.runtime.batch import Chunk
from pellucid.runtime.cache import BlockTable
from pellucid.trace.trace import Trace
from support.tiny import model_runner, opened


def same_tokens(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    """True if the shapes are equal and the same elements are finite: scores have minus infinity for masked tokens."""
    return found.shape == expected.shape and np.array_equal(np.isfinite(found), np.isfinite(expected))


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference, as a fraction of the range of the expected values."""
    if not same_tokens(found, expected):
        return np.inf
    seen = np.isfinite(expected)
    return float(np.abs(found[seen] - expected[seen]).max() / (np.ptp(expected[seen]) or 1.0))


def cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Cosine of the angle between the finite elements of two arrays."""
    if not same_tokens(found, expected):
        return -1.0
    seen = np.isfinite(expected)
    a, b = np.float64(found[seen]), np.float64(expected[seen])
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def values_of_points(path: Path, ids: Sequence[int]) -> tuple[dict[str, NDArray[Any]], Mapping[str, Point]]:
    """The values of all points of a precise run of ``ids``, (1, T, ...), and the points."""
    with opened(path) as (checkpoint, model):
        plan = pipeline.build_plan(model.spec, layouts(checkpoint, model), MAX_ACTIVATION_BITS, "f32")
    with model_runner(path, plan) as runner:
        trace = Trace(runner.plan.points, ["**"])
        watching = trace.watching()
        (recorder,) = watching.begin(list(ids))
        watching.keep(recorder)
        recorder.tokens = lambda: list(ids)
        runner.forward([Chunk(BlockTable(), list(ids), len(ids), recorder=recorder)])
        return {point: trace[point] for point in trace}, runner.plan.points
