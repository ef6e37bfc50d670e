"""Functions of edits: they change features of a sparse coder, or replace values by their reconstruction."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.calls import CallContext
from pellucid.trace.dictionaries.sparse_coder import ActiveFeatures, FeatureEncoder, SparseCoder

Values = NDArray[np.float32]
Change = Callable[[Values], Values]
"""From activations (n, features) to new activations."""


class ChangedFeatures:
    """Some features of a coder, and how their activations change. ``at(output)`` is the function for one output."""

    def __init__(self, coder: SparseCoder, features: NDArray[np.int64], change: Change) -> None:
        self.coder, self.change = coder, change
        self.encoder = FeatureEncoder(coder, features)
        self.vectors = coder.vectors(features)

    def at(self, output: int) -> FeatureChange:
        """The function of the edit of the values that an output of the coder writes."""
        return FeatureChange(self, output)

    def steps(self, x: Values) -> Values:
        """The changes of the activations, (n, features), for inputs (n, D)."""
        before = self.encoder(x)
        return self.change(before) - before


class FeatureChange:
    """Adds the changes of activations, times the features' vectors, to the values of one output of a coder.

    x becomes x + Σ (f' - f) · vector, so the error of the reconstruction stays. If no activation changes, the values
    keep their bits. The function of the first output computes the changes, and keeps them for the others.
    """

    def __init__(self, changed: ChangedFeatures, output: int) -> None:
        self._changed, self._output = changed, output

    def __call__(self, values: Values, context: CallContext) -> Values | None:
        changed, rows = self._changed, values.reshape(len(values), -1)
        key, scales = (id(changed), context.sequence), None
        if self._output:
            steps = context.state[key]
        else:
            x = input_of(changed.coder, values, context)
            steps = changed.steps(x)
            scales = changed.coder.scales(x)
            if len(changed.coder.writes) > 1:
                context.state[key] = steps
        if not steps.any():
            return None
        return added(rows, steps, changed.vectors[:, self._output], scales).reshape(values.shape)


class Reconstruction:
    """Replaces the values that a coder writes first by the reconstruction.

    ``others`` are the coders of earlier layers that write to the same values, with their outputs. Their own functions
    left their active features in the request's state. ``changed``: features of this coder that change.
    """

    def __init__(
        self,
        coder: SparseCoder,
        others: Sequence[tuple[SparseCoder, int]] = (),
        changed: ChangedFeatures | None = None,
    ) -> None:
        self._coder, self._others, self._changed = coder, others, changed

    def __call__(self, values: Values, context: CallContext) -> Values:
        x = input_of(self._coder, values, context)
        active, count = self._coder.active(x), len(values)
        sums = self._coder.summed(active, 0, count)
        for coder, output in self._others:
            own: ActiveFeatures = context.state[id(coder), context.sequence]
            sums += coder.summed(own, output, count)
        context.state[id(self._coder), context.sequence] = active
        if self._changed is not None:
            sums = added(sums, self._changed.steps(x), self._changed.vectors[:, 0], None)
        return self._coder.reconstruction(sums, x).reshape(values.shape)


def input_of(coder: SparseCoder, values: Values, context: CallContext) -> Values:
    """The input (n, D) of a coder in a function that changes the ``values`` that the coder writes first."""
    given = values if coder.is_autoencoder else context[coder.reads.name]
    return given.reshape(len(values), -1)


def added(rows: Values, steps: Values, vectors: Values, scales: Values | None) -> Values:
    """Rows (n, D) plus ``steps`` (n, m) times ``vectors`` (m, D) and ``scales`` (n, 1), feature by feature."""
    made = rows.copy()
    for step, vector in zip(steps.T, vectors):
        at = np.flatnonzero(step)
        factors = step[at, None] if scales is None else step[at, None] * scales[at]
        with np.errstate(over="ignore", invalid="ignore"):  # the edit refuses values that are not finite
            made[at] += factors * vector
    return made
