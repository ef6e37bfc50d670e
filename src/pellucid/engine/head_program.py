"""Runs only the operations after the last block, on given vectors that replace the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.engine.traced_program import BoundProgram
from pellucid.errors import InvalidRequest
from pellucid.model.spec import ModelSpec
from pellucid.plan.bind import places
from pellucid.plan.embedding import RESIDUAL
from pellucid.plan.passes import optimize
from pellucid.plan.plan import At, Plan
from pellucid.runtime.executor import Program


class HeadProgram:
    """The operations after the last block of ``source``, an unoptimized plan: norms, pooling, output layers, head."""

    def __init__(self, source: Plan, bind: Callable[[Plan], Program]) -> None:
        of_blocks = [i for i, op in enumerate(source.operations) if op.stage.startswith("blocks.")]
        first = of_blocks[-1] + 1
        last = next(op for op in reversed(source.operations[:first]) if RESIDUAL in op.writes)
        self._buffer, view = RESIDUAL, last.views[last.writes.index(RESIDUAL)]
        assert view is not None
        self._width, self._count = view.width, view.count
        plan = optimize(replace(source, operations=source.operations[first:]))
        self.bound = BoundProgram(bind(plan), places(plan, At(plan.output)))

    def fill(self, vectors: NDArray[np.float32], arrays: dict[str, NDArray[Any]]) -> None:
        """Write the vectors (n, D) to the buffer of the residual stream."""
        rows = arrays[self._buffer].reshape(-1)[: len(vectors) * self._width].reshape(-1, self._width)
        rows[:, self._count :] = 0
        rows[:, : self._count] = vectors


def checked_vectors(
    spec: ModelSpec, vectors: NDArray[np.float32], rows: int, most: int
) -> NDArray[np.float32]:
    """The vectors (n, D) as float32. Each sequence has ``rows`` vectors, at most ``most``.

    Raises:
        InvalidRequest: as ``ModelRunner.project``.
    """
    vectors = np.atleast_2d(np.asarray(vectors, np.float32))
    if spec.altup:
        raise InvalidRequest(
            f"the model has {spec.altup.streams} residual streams, so a vector of one of them has no logits: use "
            "gradients or attribution_graph"
        )
    if vectors.ndim != 2 or vectors.shape[1] != spec.embedding.width:
        raise InvalidRequest(f"vectors of shape {vectors.shape}; they must be (n, {spec.embedding.width:,})")
    if not 1 <= rows <= most or len(vectors) % rows:
        raise InvalidRequest(
            f"rows={rows:,}: must divide the {len(vectors):,} vectors, and be at most {most:,}"
        )
    return vectors
