"""A sparse coder on its model: activations of its features, and reconstructions from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.trace.dictionaries.coder_weights import (
    NORMALIZATIONS,
    CoderWeights,
    HookedPoint,
    Normalized,
    point_of_hook,
)
from pellucid.trace.edits import CallContext
from pellucid.trace.traced_model import ModelWeights, RowProduct, TracedModel

Values = NDArray[np.float32]
Numbers = NDArray[np.int64]
CHUNK = 64  # maximum number of rows that are encoded at once, which bounds the memory of the activations
LEAST_WEIGHT = 1e-6  # minimum magnitude of a norm's weight that values are divided by


class ActiveFeatures(NamedTuple):
    """The activations that are not 0: of the row ``rows`` (n,) and the feature ``features`` (n,), in this order."""

    rows: Numbers
    features: Numbers
    activations: Values


class SparseCoder:
    """The encoder and the decoder of one layer of a dictionary.

    It reads the values of ``reads``, and its features write vectors to ``writes``, with one output of the decoder for
    each. All results are float32, and the results of a row have the same bits whatever other
    rows are computed with it.

    Raises:
        InvalidRequest: the model lacks a hook, or a width differs.
    """

    def __init__(self, weights: CoderWeights, model: TracedModel) -> None:
        self.features, self.width = weights.encoder.shape
        _, outputs, self.width_out = weights.decoder.shape
        read = point_of_hook(model.points, weights.reads)
        written = [point_of_hook(model.points, hook) for hook in weights.writes]
        sized = [(weights.reads, read, self.width)]
        sized += [(hook, own, self.width_out) for hook, own in zip(weights.writes, written, strict=True)]
        for hook, own, size in sized:
            if own.width != size:
                raise InvalidRequest(
                    f"{weights.path.name}: hook {brief(hook)}: the dictionary has vectors of {size:,} values, and "
                    f"{own.name} of this model has {own.width:,}: it is for another model"
                )
        order = [own.point.operation for own in (read, *written)]
        self.is_autoencoder = read == written[0]
        if order != sorted(order) or len(set(order[1:])) < outputs or any(own.norm for own in written):
            raise InvalidRequest(f"{weights.path.name}: it must write values that are computed after those it reads")
        self.reads, self.writes = read, written
        encoder = weights.encoder / _norm_weights(read, model, weights) if read.norm else weights.encoder
        self._encoder = RowProduct(encoder)
        self._skip = None if weights.skip is None else RowProduct(weights.skip)
        self._weights = replace(weights, encoder=self._encoder.rows(np.empty(0, np.int64)), skip=None)

    @property
    def activation(self) -> str:
        """The name of the activation function."""
        return self._weights.activation.name

    @property
    def rescales(self) -> bool:
        """True if the output is scaled back, because the input was normalised."""
        return self._weights.normalization in NORMALIZATIONS and self.is_autoencoder

    @property
    def normalizes(self) -> bool:
        """True if the input is normalised, so that activations are not linear in it."""
        return self._weights.normalization in NORMALIZATIONS

    @cached_property
    def skip_matrix(self) -> Values | None:
        """The matrix (D', D) from the input to the output of a skip transcoder."""
        return None if self._skip is None else self._skip.rows(np.arange(self._skip.count))

    def _normalized(self, x: Values) -> Normalized:
        """The input of the encoder for vectors (n, D), and how to scale its output."""
        if (normalize := NORMALIZATIONS.get(self._weights.normalization)) is not None:
            return normalize(x)
        return Normalized(x, np.ones((len(x), 1), np.float32), np.zeros((len(x), 1), np.float32))

    def _input(self, x: Values) -> Values:
        if x.shape[1] != self.width:
            raise InvalidRequest(
                f"dictionary: it reads vectors of {self.width:,} numbers, and these have {x.shape[1]:,}: open the "
                "dictionary of this model"
            )
        rows = self._normalized(x).rows
        return rows if self._weights.input_bias is None else rows - self._weights.input_bias

    def encode(self, x: Values) -> Values:
        """The activations of all features, (n, F), for vectors (n, D)."""
        return np.concatenate([*self._chunks(x), np.empty((0, self.features), np.float32)])

    def _chunks(self, x: Values) -> Iterator[Values]:
        rows = self._input(x)
        for start in range(0, len(rows), CHUNK):
            before = self._encoder(rows[start : start + CHUNK]) + self._weights.encoder_bias
            yield self._weights.activation(before)

    def active(self, x: Values) -> ActiveFeatures:
        """The activations that are not 0, for vectors (n, D)."""
        rows, features, activations = list[Numbers](), list[Numbers](), list[Values]()
        for number, after in enumerate(self._chunks(x)):
            row, feature = np.nonzero(after)
            rows.append(row + CHUNK * number)
            features.append(feature)
            activations.append(after[row, feature])
        none = np.empty(0, np.int64)
        return ActiveFeatures(
            np.concatenate([*rows, none]),
            np.concatenate([*features, none]),
            np.concatenate([*activations, np.empty(0, np.float32)]),
        )

    def vectors(self, features: Numbers) -> Values:
        """The vectors of some features, (n, O, D): what one unit of activation writes to each point."""
        return self._weights.decoder.rows(features)

    def directions(self, features: Numbers) -> Values:
        """The rows of the encoder of some features, (n, D)."""
        return self._encoder.rows(features)

    def scales(self, x: Values) -> Values | None:
        """The factors (n, 1) of the vectors of features for inputs (n, D); None: 1."""
        return self._normalized(x).scale if self.rescales else None

    def summed(self, active: ActiveFeatures, output: int, count: int) -> Values:
        """The sums of the active features' vectors for ``count`` rows, (count, D), without bias."""
        sums = np.zeros((count, self.width_out), np.float32)
        ends = np.searchsorted(active.rows, np.arange(count + 1))
        for row, (start, stop) in enumerate(pairwise(ends)):
            if stop > start:
                vectors = self.vectors(active.features[start:stop])[:, output]
                sums[row] = np.add.reduce(vectors * active.activations[start:stop, None], 0)
        return sums

    def reconstruction(self, sums: Values, x: Values) -> Values:
        """The reconstruction of the first output from the sums of features' vectors, for the inputs ``x`` (n, D)."""
        made = sums + self._weights.decoder_bias
        if self.rescales:
            _, scale, shift = self._normalized(x)
            made = made * scale + shift
        return made if self._skip is None else made + self._skip(x)

    def decode(self, active: ActiveFeatures, x: Values) -> Values:
        """The reconstruction of the first output, (n, D), from activations and the inputs ``x`` (n, D)."""
        return self.reconstruction(self.summed(active, 0, len(x)), x)


class FeatureEncoder:
    """Activations of some features. It multiplies only their rows, unless they depend on all features (top-k)."""

    def __init__(self, coder: SparseCoder, features: Numbers) -> None:
        self._coder, self._features = coder, features
        weights = coder._weights
        self._activation = weights.activation.of(features) if weights.activation.by_feature else None
        self._product = RowProduct(coder._encoder.rows(features)) if self._activation else None

    def __call__(self, x: Values) -> Values:
        """The activations (n, number of features) for vectors (n, D)."""
        coder = self._coder
        if self._product is None or self._activation is None:
            return coder.encode(x)[:, self._features]
        return self._activation(self._product(coder._input(x)) + coder._weights.encoder_bias[self._features])


def _norm_weights(read: HookedPoint, model: TracedModel, weights: CoderWeights) -> Values:
    """The weights of the norm that the values of a point include, (D,)."""
    found = ModelWeights(model.checkpoint, model.model).vector(read.norm, weights.encoder.shape[1], 1.0)
    if (np.abs(found) < LEAST_WEIGHT).any():
        raise InvalidRequest(
            f"{weights.path.name}: hook {brief(weights.reads)}: a weight of the norm is 0, so the values before the "
            "weights are not known"
        )
    return found.astype(np.float32)


Change = Callable[[Values], Values]  # from activations (n, features) to new activations


class ChangedFeatures:
    """Some features of a coder, and how their activations change. ``at(output)`` is the function for one output."""

    def __init__(self, coder: SparseCoder, features: NDArray[np.int64], change: Change) -> None:
        self.coder, self.change = coder, change
        self.encoder = FeatureEncoder(coder, features)
        self.vectors = coder.vectors(features)

    def at(self, output: int) -> FeatureChange:
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
        self, coder: SparseCoder, others: Sequence[tuple[SparseCoder, int]] = (), changed: ChangedFeatures | None = None
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
