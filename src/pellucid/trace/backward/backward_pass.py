"""The backward pass: the vector-Jacobian products of a plan's operations, in reverse order.

A value is a version of a buffer: the plan overwrites its buffers (``Versions``). The rows of several sequences are
computed together, so that each matrix is read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.plan import Operation
from pellucid.plan.points import Point, View
from pellucid.trace.backward.product_values import Rows, Values
from pellucid.trace.backward.products import product_of
from pellucid.trace.backward.reverse_walk import Adjoints, ReverseWalk
from pellucid.trace.backward.tape import Tape, Version, Versions, version_of
from pellucid.trace.traced_model import ModelWeights

OF_PATTERNS = ("pattern", "scores")


class BackwardPass:
    """The backward pass of a plan, with the ``versions`` of its buffers, to some ``points``.

    It begins at the output of the plan, or at the value of the point ``start``.

    Raises:
        InvalidRequest: an operation after the first point has no product, or a point has no gradient.
    """

    def __init__(self, versions: Versions, points: Sequence[Point], start: Point | None = None) -> None:
        plan = versions.plan
        self.plan, self.points = plan, list(points)
        for point in points:
            if point.kind not in ("value", *OF_PATTERNS) or point.dtype != "float32":
                raise InvalidRequest(
                    f"point={point.name}: it has no gradient: choose a value, a pattern or scores"
                )
        self.recorded = {point.name: version_of(point, versions) for point in points if point.kind == "value"}
        """The versions of the points, which a tape records too."""
        first = min((point.operation for point in points), default=len(plan.operations))
        if start is None:
            last = max(n for n, op in enumerate(plan.operations) if plan.output in op.writes)
            self._last = Version(plan.output, last)
        else:
            self._last = version_of(start, versions)
        patterns = [point.operation for point in points if point.kind in OF_PATTERNS]
        self._walk = ReverseWalk(versions, [self._last], first, product_of, kept=patterns)
        self.needs = self._walk.needs(self.recorded.values())

    @property
    def versions(self) -> Versions:
        """The versions of the plan's buffers."""
        return self._walk.versions

    def run(
        self, tapes: Sequence[Tape], seeds: NDArray[np.float32], weights: ModelWeights
    ) -> list[dict[str, NDArray[np.float32]]]:
        """The gradients of each point in each sequence, for the gradients ``seeds`` of the start.

        ``seeds`` (R, V) has a row for each output of all sequences, or (T, D) for each of their tokens if the pass
        begins at a point. A point's gradient has the shape of its value.
        """
        ends = np.cumsum([tape.rows["tokens"] for tape in tapes]).tolist()
        sequences = [slice(end - tape.rows["tokens"], end) for end, tape in zip(ends, tapes)]
        picked = np.concatenate(
            [np.arange(own.start + tape.first_output, own.stop) for own, tape in zip(sequences, tapes)]
        )
        count = len(picked) if self.versions.rows(self._last) == "outputs" else ends[-1]
        seed = np.zeros((count, self.versions.width(self._last)), np.float32)
        seed[:, : seeds.shape[1]] = seeds
        adjoints, found = Adjoints(self.versions), [dict[str, NDArray[np.float32]]() for _ in tapes]
        adjoints.add(self._last, seed)
        angles = dict[str, Any]()
        for number in range(self._last.writer, self._walk.first - 1, -1):
            op = self.plan.operations[number]
            own = {name: adjoints.take(Version(name, number)) for name in op.writes}
            for point in self.points:
                gradient = own.get(op.writes[point.write]) if point.operation == number else None
                if point.kind == "value" and gradient is not None:
                    self._collect(point, gradient, sequences, tapes, found)
            out = next((own[name] for name in op.writes if own[name] is not None), None)
            if out is None or number not in self._walk.products:
                continue
            given = {name: one for name, one in own.items() if one is not None}
            shared = Values(self.plan, weights, {}, sequences, picked, angles=angles, gradients=given)
            values = self._values(number, tapes, shared)
            self._push(number, op, out, values, adjoints, found)
        return found

    def _push(
        self,
        number: int,
        op: Operation,
        out: Rows,
        values: Values,
        adjoints: Adjoints,
        found: list[dict[str, NDArray[np.float32]]],
    ) -> None:
        """Add the gradients of the inputs of an operation."""
        of_pattern = [
            point for point in self.points if point.operation == number and point.kind in OF_PATTERNS
        ]
        for name, gradient in self._walk.products[number].product(op, out, values):
            kind, _, sequence = name.partition(".")
            if sequence:
                for point in of_pattern:
                    if point.kind == kind:
                        found[int(sequence)][point.name] = gradient
                continue
            version = self._walk.input_of(number, name)
            if version is not None and version.writer >= self._walk.first:
                adjoints.add(version, gradient)

    def _values(self, number: int, tapes: Sequence[Tape], shared: Values) -> Values:
        """The recorded values that the product of an operation reads, beside the ``shared`` values."""
        needs = self.needs
        patterns = [tape.pattern(number) for tape in tapes] if number in needs.patterns else []
        scores = [tape.pattern(number, raw=True) for tape in tapes] if number in needs.scores else []
        values = self._walk.recorded(number, tapes)
        own: Values = replace(shared, values=values, patterns=patterns, scores=scores)
        return own

    def values_of(self, tape: Tape) -> dict[str, NDArray[np.float32]]:
        """The values of the points in the run of a tape."""
        points = {point.name: point for point in self.points}
        return {
            name: viewed(tape.value(version), points[name].view, heads=points[name].heads > 0)
            for name, version in self.recorded.items()
        }

    def _collect(
        self,
        point: Point,
        gradient: Rows,
        sequences: Sequence[slice],
        tapes: Sequence[Tape],
        found: list[dict[str, NDArray[np.float32]]],
    ) -> None:
        first = 0
        for own, tape, gradients in zip(sequences, tapes, found):
            rows = own
            if point.rows == "outputs":
                rows = slice(first, first + tape.rows["outputs"])
                first = rows.stop
            gradients[point.name] = viewed(gradient[rows], point.view, heads=point.heads > 0)


def viewed(rows: Rows, view: View, *, heads: bool) -> NDArray[np.float32]:
    """The values of a view in rows of a buffer: (n, parts, count), or without ``heads`` (n, count)."""
    spaced = np.zeros((len(rows), view.parts * view.stride), np.float32)
    count = min(spaced.shape[1], rows.shape[1])
    spaced[:, :count] = rows[:, :count]
    values = spaced.reshape(len(rows), view.parts, view.stride)[:, :, : view.count]
    return np.ascontiguousarray(values if heads else values.reshape(len(rows), -1))
