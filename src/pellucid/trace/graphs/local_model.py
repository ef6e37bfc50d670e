"""The local replacement model of a run: its linear map, applied backwards to many gradients at once.

Feed-forwards are cut at their outputs, whose values are the sum of units (features or neurons) and an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from pellucid.trace.backward.product_values import Rows, Values
from pellucid.trace.backward.reverse_walk import Adjoints, ReverseWalk
from pellucid.trace.backward.tape import Tape, Version, Versions
from pellucid.trace.graphs.frozen_products import frozen_product_of
from pellucid.trace.traced_model import ModelWeights


class Injection(NamedTuple):
    """A vector that is added to the gradient of a value: of ``copy``, at the value's ``row``."""

    copy: int
    row: int
    vector: Rows


Collect = Callable[[Version, Rows, Adjoints], Rows | None]
"""Gets a version that is collected, its gradient (N, rows, width), and the gradients of earlier versions.

Returns the gradient that continues, or None.
"""


class LocalModel:
    """The operations of the local replacement model, from the versions ``starts`` down to the version ``end``.

    The gradients of the versions ``collected`` are handed out. They stop at the versions ``cuts``.
    """

    def __init__(
        self,
        versions: Versions,
        starts: Collection[Version],
        end: Version,
        *,
        cuts: Collection[Version],
        collected: Collection[Version],
        recorded_patterns: bool,
    ) -> None:
        self.versions, self._collected = versions, frozenset(collected)
        product_of = partial(frozen_product_of, recorded_patterns=recorded_patterns)
        self.walk = ReverseWalk(versions, starts, end.writer, product_of, cuts=cuts)

    def run(
        self,
        tape: Tape,
        weights: ModelWeights,
        tokens: int,
        copies: int,
        injections: Mapping[Version, Sequence[Injection]],
        collect: Collect,
    ) -> None:
        """Apply the map backwards to the vectors ``injections`` of ``copies`` copies at the first ``tokens`` tokens."""
        versions, plan = self.versions, self.versions.plan
        picked = np.arange(min(tape.first_output, tokens - 1), tokens)
        shared = Values(plan, weights, {}, [slice(0, tokens)], picked)
        adjoints, rows = Adjoints(versions), {"tokens": tokens, "outputs": len(picked)}
        last = max((version.writer for version in injections), default=self.walk.first - 1)
        for number in range(last, self.walk.first - 1, -1):
            op, gradients = plan.operations[number], dict[str, Rows]()
            for name in op.writes:
                version = Version(name, number)
                own = adjoints.take(version)
                if own is not None and version in self._collected:
                    found = collect(version, own.reshape(copies, rows[op.rows], -1), adjoints)
                    own = None if found is None else found.reshape(copies * rows[op.rows], -1)
                if given := injections.get(version):
                    own = self._injected(own, given, version, copies, rows[op.rows])
                if own is not None:
                    gradients[name] = own
            if not gradients or number not in self.walk.products:
                continue
            values: Values = replace(shared, values=self._recorded(number, tape, tokens), gradients=gradients)
            if self.walk.products[number].patterns:
                values = replace(values, patterns=[tape.pattern(number)])
            for name, gradient in self.walk.products[number].product(
                op, next(iter(gradients.values())), values
            ):
                before = self.walk.input_of(number, name)
                if before is not None and before.writer >= self.walk.first:
                    adjoints.add(before, gradient)

    def _recorded(self, number: int, tape: Tape, tokens: int) -> dict[str, Rows]:
        rows = self.walk.recorded(number, [tape])
        return {name: own[:tokens] for name, own in rows.items()}

    def _injected(
        self, own: Rows | None, given: Sequence[Injection], version: Version, copies: int, rows: int
    ) -> Rows:
        width = self.versions.width(version)
        found = np.zeros((copies * rows, width), np.float32) if own is None else own
        if not found.flags.writeable:
            found = found.copy()
        at = np.array([one.copy * rows + one.row for one in given])
        vectors = np.stack([one.vector for one in given])
        np.add.at(found[:, : vectors.shape[1]], at, vectors)
        return found
