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
from pellucid.plan.plan import At, Operation
from pellucid.plan.points import Point, View
from pellucid.trace.backward.product_values import KernelProduct, Rows, Values
from pellucid.trace.backward.products import product_of
from pellucid.trace.backward.tape import NOTHING, Tape, TapeNeeds, Version, Versions, fields_of
from pellucid.trace.traced_model import ModelWeights

OF_PATTERNS = ("pattern", "scores")


class BackwardPass:
    """The backward pass of a plan, with the ``versions`` of its buffers, to some ``points``.

    Raises:
        InvalidRequest: an operation after the first point has no product, or a point has no gradient.
    """

    def __init__(self, versions: Versions, points: Sequence[Point]) -> None:
        plan = versions.plan
        self.plan, self.points, self._versions = plan, list(points), versions
        for point in points:
            if point.kind not in ("value", *OF_PATTERNS) or point.dtype != "float32":
                raise InvalidRequest(
                    f"point={point.name}: it has no gradient: choose a value, a pattern or scores"
                )
        self.recorded = {
            point.name: Version(plan.operations[point.operation].writes[point.write], point.operation)
            for point in points
            if point.kind == "value"
        }
        """The versions of the points, which a tape records too."""
        self._first = min((point.operation for point in points), default=len(plan.operations))
        self._products = dict[int, KernelProduct]()
        last = Version(
            plan.output, max(n for n, op in enumerate(plan.operations) if plan.output in op.writes)
        )
        self.needs = self._needed(last)
        self._last = last

    @property
    def versions(self) -> Versions:
        """The versions of the plan's buffers."""
        return self._versions

    def _needed(self, last: Version) -> TapeNeeds:
        """The values that the products read. Only operations that lead to the output count."""
        live, patterns, scores = {last}, list[int](), list[int]()
        values = dict.fromkeys(self.recorded.values())
        for number in range(last.writer, self._first - 1, -1):
            op = self.plan.operations[number]
            if not any(Version(name, number) in live for name in op.writes):
                continue
            reached = any(point.operation == number and point.kind in OF_PATTERNS for point in self.points)
            if number == self._first and not reached:
                continue
            self._products[number] = product = product_of(op)
            own = [name for name in product.inputs if isinstance(op.fields[name], At)]
            inputs = [self._versions.read(number, name) for name in fields_of(op, own)]
            inputs += [Version(name, number) for name in fields_of(op, product.outputs)]
            if product.choices:
                inputs.append(self._choices(number))
            if product.patterns:
                patterns.append(number)
                inputs += self._cached(number)
                if op.fields["softcap"]:
                    scores.append(number)
            values |= dict.fromkeys(inputs)
            passed = [name for name in product.passes if isinstance(op.fields[name], At)]
            live |= {self._versions.read(number, name) for name in fields_of(op, passed)}
            live |= set(self._cached(number)) if product.patterns else set()
        if any(version.writer == NOTHING for version in values):
            raise InvalidRequest("a value that the backward pass reads is not computed by the plan")
        return TapeNeeds(tuple(values), tuple(patterns), tuple(scores))

    def _choices(self, number: int) -> Version:
        """The experts that tokens have chosen, for a product with experts' matrices."""
        group = self._versions.read(number, "runs").writer
        return self._versions.read(group, fields_of(self.plan.operations[group], ["ids"])[0])

    def _cached(self, number: int) -> list[Version]:
        """The keys and values that an attention reads from the cache."""
        op = self.plan.operations[number]
        name = next(name for name in op.reads if name.startswith("cache."))
        writer = self._versions.read(number, name).writer
        written = self.plan.operations[writer]
        return [self._versions.read(writer, name) for name in fields_of(written, "kv")]

    def run(
        self, tapes: Sequence[Tape], seeds: NDArray[np.float32], weights: ModelWeights
    ) -> list[dict[str, NDArray[np.float32]]]:
        """The gradients of each point in each sequence, for the gradients ``seeds`` (R, V) of all outputs.

        A point's gradient has the shape of its value.
        """
        ends = np.cumsum([tape.rows["tokens"] for tape in tapes]).tolist()
        sequences = [slice(end - tape.rows["tokens"], end) for end, tape in zip(ends, tapes)]
        picked = np.concatenate(
            [np.arange(own.start + tape.first_output, own.stop) for own, tape in zip(sequences, tapes)]
        )
        seed = np.zeros((len(picked), self._versions.width(self._last)), np.float32)
        seed[:, : seeds.shape[1]] = seeds
        adjoints, found = {self._last: seed}, [dict[str, NDArray[np.float32]]() for _ in tapes]
        angles = dict[str, Any]()
        for number in range(self._last.writer, self._first - 1, -1):
            op = self.plan.operations[number]
            own = {name: adjoints.pop(Version(name, number), None) for name in op.writes}
            for point in self.points:
                gradient = own.get(op.writes[point.write]) if point.operation == number else None
                if point.kind == "value" and gradient is not None:
                    self._collect(point, gradient, sequences, tapes, found)
            out = next((own[name] for name in op.writes if own[name] is not None), None)
            if out is None or number not in self._products:
                continue
            values = self._values(
                number, op, tapes, Values(self.plan, weights, {}, sequences, picked, angles=angles)
            )
            self._push(number, op, out, values, adjoints, found)
        return found

    def _push(
        self,
        number: int,
        op: Operation,
        out: Rows,
        values: Values,
        adjoints: dict[Version, Rows],
        found: list[dict[str, NDArray[np.float32]]],
    ) -> None:
        """Add the gradients of the inputs of an operation."""
        of_pattern = [
            point for point in self.points if point.operation == number and point.kind in OF_PATTERNS
        ]
        cached = dict(zip("kv", self._cached(number))) if self._products[number].patterns else {}
        for name, gradient in self._products[number].product(op, out, values):
            kind, _, sequence = name.partition(".")
            if sequence:
                for point in of_pattern:
                    if point.kind == kind:
                        found[int(sequence)][point.name] = gradient
                continue
            version = cached.get(name) or self._versions.read(number, fields_of(op, [name])[0])
            if version.writer < self._first:
                continue
            width = self._versions.width(version)
            if (before := adjoints.get(version)) is None:
                adjoints[version] = before = np.zeros((len(gradient), width), np.float32)
            elif not before.flags.owndata:
                adjoints[version] = before = before.copy()
            before[:, : gradient.shape[1]] += gradient[:, :width]

    def _values(self, number: int, op: Operation, tapes: Sequence[Tape], shared: Values) -> Values:
        """The recorded values that the product of an operation reads, beside the ``shared`` values."""
        product, versions = self._products[number], dict[str, Version]()
        for name in product.inputs:
            if isinstance(op.fields[name], At):
                versions[name] = self._versions.read(number, fields_of(op, [name])[0])
        versions |= {f"out.{name}": Version(fields_of(op, [name])[0], number) for name in product.outputs}
        patterns, scores = list[Rows](), list[Rows]()
        if product.choices:
            versions["ids"] = self._choices(number)
        if product.patterns:
            versions |= dict(zip("kv", self._cached(number)))
            patterns = [tape.pattern(number) for tape in tapes]
            scores = [tape.pattern(number, raw=True) for tape in tapes] if op.fields["softcap"] else []
        values = {name: np.concatenate([tape.value(one) for tape in tapes]) for name, one in versions.items()}
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
