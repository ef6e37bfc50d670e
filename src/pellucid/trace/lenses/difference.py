"""The difference of two runs, point by point: two prompts of equal length, or two models of the same shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.traced_model import TracedModel, read, residual_points


@dataclass(frozen=True)
class PointDifference:
    """The difference of a point's values a and b in two runs, over all positions.

    ``relative`` is |a - b| / |b|, and ``cosine`` is the cosine between a and b. ``by_position`` (T,) is the relative
    difference at each position. ``position`` has the largest relative difference.
    """

    name: str
    relative: float
    cosine: float
    position: int
    by_position: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, repr=False)
class RunDifference:
    """The differences of points, in the order of the pipeline."""

    points: Sequence[PointDifference]
    pieces: list[str]

    def __repr__(self) -> str:
        first = self.begins()
        begins = f"begins at {first.name}" if first else "no difference"
        return f"RunDifference({len(self.points)} points, {begins}, ends at {self.points[-1].relative:.2%})"

    def begins(self, least: float = 0.0) -> PointDifference | None:
        """The first point whose relative difference is above ``least``."""
        return next((point for point in self.points if point.relative > least), None)

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dictionary for JSON."""
        return {
            "pieces": self.pieces,
            "points": [{**vars(point), "by_position": point.by_position.tolist()} for point in self.points],
        }


def difference(
    model: TracedModel, a: Any, b: Any, *, other: TracedModel | None = None, points: Sequence[str] | None = None
) -> RunDifference:
    """Compare run ``a`` of this model with run ``b`` of this model, or of an ``other`` model of the same shape.

    ``a`` and ``b`` are prompts, or sequences of traces. By default ``points`` is the residual stream after each block.

    Raises:
        InvalidRequest: the runs differ in length, or the models differ in shape.
    """
    names = list(points) if points is not None else residual_points(model)
    second = other or model
    if second.spec.embedding.width != model.spec.embedding.width or len(second.spec.blocks) != len(model.spec.blocks):
        raise InvalidRequest("the two models have different shapes: their values cannot be compared")
    run_a = read(model, a, names)
    run_b = read(second, b, names)
    if len(run_a) != len(run_b):
        raise InvalidRequest(f"the runs have {len(run_a)} and {len(run_b)} tokens: compare runs of equal length")
    return RunDifference([_compared(name, run_a[name], run_b[name]) for name in names], run_a.pieces)


def _compared(name: str, a: NDArray[Any], b: NDArray[Any]) -> PointDifference:
    if a.shape != b.shape:
        raise InvalidRequest(f"point={name!r}: shapes {a.shape} and {b.shape} cannot be compared")
    x, y = (values.astype(np.float64).reshape(len(values), -1) for values in (a, b))
    off, size = np.linalg.norm(x - y, axis=1), np.linalg.norm(y, axis=1)
    each = off / np.maximum(size, 1e-30)
    cosine = float((x * y).sum() / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
    relative = float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30))
    return PointDifference(name, relative, cosine, int(each.argmax()), each)
