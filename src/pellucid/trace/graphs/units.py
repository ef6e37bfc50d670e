"""The units of feed-forwards: neurons of the model, and features of transcoders.

A unit has an activation at a token. It reads the input of its feed-forward along a *direction*, and writes its
activation times a *vector* to the output of its feed-forward (a feature of a cross-layer transcoder also to later
ones).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.plan import Operation, Weights
from pellucid.plan.points import Point
from pellucid.trace.backward.product_values import Rows, number_of, size_of
from pellucid.trace.backward.products import FORMS
from pellucid.trace.backward.tape import Tape, Version, Versions, fields_of, version_of
from pellucid.trace.dictionaries.sparse_coder import SparseCoder
from pellucid.trace.graphs.frozen_products import linear_activation
from pellucid.trace.traced_model import ModelWeights

Numbers = NDArray[np.int64]
CHUNK = 4096
"""Number of units whose vectors are in memory at once."""


class Units(NamedTuple):
    """Some units of a layer: their tokens (rows of the feed-forward), their numbers, and their activations, (n,).

    They are in the order of tokens.
    """

    rows: Numbers
    numbers: Numbers
    activations: Rows

    def at(self, chosen: Numbers) -> Units:
        """Some of the units."""
        return Units(self.rows[chosen], self.numbers[chosen], self.activations[chosen])


class LayerUnits(Protocol):
    """The units of a feed-forward of a ``layer``, of one ``kind``: "neuron" or "feature"."""

    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...

    @property
    def reads(self) -> Version:
        """The input of the feed-forward."""
        ...

    @property
    def writes(self) -> tuple[Version, ...]:
        """Its output first, then later outputs."""
        ...

    @property
    def recorded(self) -> tuple[Version, ...]:
        """The versions that a tape must record."""
        ...

    def open(self, tape: Tape) -> Units:
        """All units with an activation that is not 0, in a run."""
        ...

    def vectors(self, units: Units) -> Rows:
        """What each unit adds to each output, (n, O, D)."""
        ...

    def directions(self, units: Units) -> Rows:
        """The directions (n, D): times the input, and plus biases, they give the activations."""
        ...

    def effects(self, units: Units, version: Version, gradient: Rows) -> Rows:
        """The effects (N, n) of all units through an output, for its gradients (N, rows, D)."""
        ...

    def passed(self, units: Units, effects: Rows, rows: int) -> Rows:
        """The gradients (N, rows, D) of the input, for the effects (N, n) of all units."""
        ...

    def skipped(self, gradient: Rows) -> Rows | None:
        """The gradient (n, D) of the input through a linear path from input to output beside the units."""
        ...

    def skip(self, tape: Tape) -> Rows | None:
        """The output of this path in a run, (rows, D)."""
        ...


class Neurons:
    """The neurons of a dense feed-forward. They are linearised by the half rule (``frozen_products.py``)."""

    kind = "neuron"

    def __init__(
        self, layer: int, activation: Operation, matrices: Mapping[str, ChainedMatrix], inputs: Mapping[str, Version],
        hidden: Version, output: Version, weights: ModelWeights,
    ) -> None:  # fmt: skip
        self.layer, self._activation, self._matrices, self._weights = layer, activation, matrices, weights
        self.reads = next(matrix.reads for name, matrix in matrices.items() if name != "down")
        self.writes = (output,)
        self._inputs, self._hidden = inputs, hidden
        self._width = size_of(activation, "width")
        self._factors: tuple[NDArray[np.float64], NDArray[np.float64] | None] | None = None
        self._values: Rows | None = None

    @property
    def recorded(self) -> tuple[Version, ...]:
        """As in ``LayerUnits``."""
        return (self._hidden, *self._inputs.values())

    def open(self, tape: Tape) -> Units:
        """As in ``LayerUnits``."""
        count = self._matrices["down"].columns(self._weights)
        x = tape.value(self._inputs["x"])[:, :count]
        up = tape.value(self._inputs["up"])[:, :count] if "up" in self._inputs else None
        self._factors = linear_activation(self._activation, x, up)
        values = np.ascontiguousarray(tape.value(self._hidden)[:, :count])
        rows, numbers = np.nonzero(values)
        return Units(rows, numbers, values[rows, numbers])

    def vectors(self, units: Units) -> Rows:
        """As in ``LayerUnits``."""
        down = self._matrices["down"]
        columns = down.factor * self._weights.values(down.slot)[:, units.numbers].T
        return np.asarray(columns * units.activations[:, None], np.float32)[:, None]

    def directions(self, units: Units) -> Rows:
        """As in ``LayerUnits``."""
        at, found = (units.rows, units.numbers), np.zeros((len(units.rows), 1))
        for name, factors in self._linear():
            matrix = self._matrices[name]
            own = self._weights.values(matrix.slot)[units.numbers] * matrix.factor
            found = found + factors[at][:, None] * own
        return found.astype(np.float32)

    def effects(self, units: Units, version: Version, gradient: Rows) -> Rows:
        """As in ``LayerUnits``."""
        down = self._matrices["down"]
        matrix = self._weights.values(down.slot)
        rows = gradient.reshape(-1, gradient.shape[2])[
            :, : len(matrix)
        ]  # one product, not one for each target
        found = (rows @ matrix * np.float32(down.factor)).reshape(*gradient.shape[:2], -1)
        return np.asarray(found[:, units.rows, units.numbers] * units.activations, np.float32)

    def passed(self, units: Units, effects: Rows, rows: int) -> Rows:
        """As in ``LayerUnits``."""
        assert self._factors is not None
        slopes = np.zeros((len(effects), rows, self._factors[0].shape[1]), np.float32)
        slopes[:, units.rows, units.numbers] = effects / units.activations
        found = np.zeros((len(effects) * rows, 1), np.float32)
        for name, factors in self._linear():
            matrix = self._matrices[name]
            own = (slopes * factors.astype(np.float32)).reshape(len(found), -1)
            found = found + own @ self._weights.values(matrix.slot) * np.float32(matrix.factor)
        return found.reshape(len(effects), rows, -1)

    def _linear(self) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """The inputs of the activation, with the factors (T, F) of their linear form."""
        assert self._factors is not None
        for name, factors in zip(("x", "up"), self._factors):
            if factors is not None:
                yield name, factors

    def skipped(self, gradient: Rows) -> Rows | None:
        """As in ``LayerUnits``: there is no such path."""
        return None

    def skip(self, tape: Tape) -> Rows | None:
        """As in ``LayerUnits``."""
        return None


class Features:
    """The active features of a transcoder."""

    kind = "feature"

    def __init__(self, layer: int, coder: SparseCoder, versions: Versions) -> None:
        self.layer, self._coder = layer, coder
        self.reads = version_of(coder.reads.point, versions)
        self.writes = tuple(version_of(own.point, versions) for own in coder.writes)
        self._before: Rows | None = None

    @property
    def recorded(self) -> tuple[Version, ...]:
        """As in ``LayerUnits``."""
        return (self.reads,)

    def open(self, tape: Tape) -> Units:
        """As in ``LayerUnits``."""
        active = self._coder.active(self._input(tape))
        return Units(active.rows, active.features, active.activations)

    def _input(self, tape: Tape) -> Rows:
        return np.ascontiguousarray(tape.value(self.reads)[:, : self._coder.width])

    def vectors(self, units: Units) -> Rows:
        """As in ``LayerUnits``."""
        return self._coder.vectors(units.numbers) * units.activations[:, None, None]

    def directions(self, units: Units) -> Rows:
        """As in ``LayerUnits``."""
        return self._coder.directions(units.numbers)

    def effects(self, units: Units, version: Version, gradient: Rows) -> Rows:
        """As in ``LayerUnits``."""
        output, found = self.writes.index(version), np.zeros((len(gradient), len(units.rows)), np.float32)
        for chosen in _chunks(len(units.rows)):
            part = units.at(chosen)
            vectors = self.vectors(part)[:, output]
            for row, mine in by_row(part.rows):
                found[:, chosen[mine]] = gradient[:, row, : vectors.shape[1]] @ vectors[mine].T
        return found

    def passed(self, units: Units, effects: Rows, rows: int) -> Rows:
        """As in ``LayerUnits``."""
        found = np.zeros((len(effects), rows, self._coder.width), np.float32)
        for chosen in _chunks(len(units.rows)):
            part = units.at(chosen)
            directions, slopes = self.directions(part), effects[:, chosen] / part.activations
            for row, mine in by_row(part.rows):
                found[:, row] += slopes[:, mine] @ directions[mine]
        return found

    def skipped(self, gradient: Rows) -> Rows | None:
        """As in ``LayerUnits``."""
        matrix = self._coder.skip_matrix
        return None if matrix is None else gradient[:, : len(matrix)] @ matrix

    def skip(self, tape: Tape) -> Rows | None:
        """As in ``LayerUnits``."""
        matrix = self._coder.skip_matrix
        return None if matrix is None else self._input(tape) @ matrix.T


class ChainedMatrix(NamedTuple):
    """A matrix product: its slot, the version that it reads, and a constant factor of its output."""

    slot: str
    reads: Version
    factor: float

    def columns(self, weights: ModelWeights) -> int:
        """The number of inputs."""
        return int(weights.values(self.slot).shape[1])


def neurons_of(
    layer: int, versions: Versions, points: Mapping[str, Point], weights: ModelWeights
) -> Neurons | None:
    """The neurons of a block's feed-forward. None if it is not of the form down(f(gate x) · up x)."""
    stage = f"blocks.{layer}.feedforward"
    hidden_point, output_point = points.get(f"{stage}.hidden"), points.get(f"{stage}.output")
    if hidden_point is None or output_point is None:
        return None
    hidden, output = version_of(hidden_point, versions), version_of(output_point, versions)
    op, down = versions.plan.operations[hidden.writer], _matrix(versions, output)
    if op.kernel.name != "activation" or down is None or down.reads != hidden:
        return None
    names = [name for name in ("x", "up") if not isinstance(op.fields[name], int)]
    inputs = {name: versions.read(hidden.writer, fields_of(op, [name])[0]) for name in names}
    matrices = {name: matrix for name, own in inputs.items() if (matrix := _matrix(versions, own))}
    if len(matrices) < len(inputs) or len({matrix.reads for matrix in matrices.values()}) > 1:
        return None
    return Neurons(layer, op, {**matrices, "down": down}, inputs, hidden, output, weights)


def _matrix(versions: Versions, version: Version) -> ChainedMatrix | None:
    """The matrix product that writes a version, before constant factors and the rounding of its input."""
    factor = 1.0
    while (op := versions.plan.operations[version.writer]).kernel.name == "scale":
        if not isinstance(op.fields["factor"], (int, float)):
            return None
        factor *= number_of(op, "factor")
        version = versions.read(version.writer, fields_of(op, ["x"])[0])
    weights = op.fields.get("weights")
    if FORMS.get(op.kernel.name) != "matmul" or not isinstance(weights, Weights):
        return None
    reads = versions.read(version.writer, fields_of(op, ["x"])[0])
    while (source := versions.plan.operations[reads.writer]).kernel.name == "quantize":
        reads = versions.read(reads.writer, fields_of(source, ["x"])[0])
    return ChainedMatrix(weights.slot, reads, factor)


def features_of(coder: SparseCoder, layer: int, versions: Versions) -> Features:
    """The features of a transcoder for a block.

    Raises:
        InvalidRequest: the coder is no transcoder of a feed-forward, or its activations are not linear in its input.
    """
    outputs = ", ".join(own.name for own in coder.writes)
    if coder.is_autoencoder or not all(".feedforward." in own.name for own in coder.writes):
        raise InvalidRequest(
            f"dictionary: it reads {coder.reads.name} and writes {outputs}: an attribution graph needs transcoders, "
            "which write the outputs of feed-forwards"
        )
    if coder.normalizes or coder.activation not in LINEAR:
        raise InvalidRequest(
            f"dictionary: activation {coder.activation}, or normalised inputs: an attribution graph needs features "
            f"that are linear in the input where they are active ({', '.join(LINEAR)})"
        )
    return Features(layer, coder, versions)


def by_row(rows: Numbers) -> Iterator[tuple[int, slice]]:
    """The units of each token in sorted ``rows`` (n,): the token, and the slice of its units."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)]):
        yield int(rows[start]), slice(start, stop)


LINEAR = ("ReLU", "JumpReLU", "top-k", "groupmax")


def _chunks(count: int) -> Iterator[Numbers]:
    """The numbers of ``count`` units in chunks."""
    for first in range(0, count, CHUNK):
        yield np.arange(first, min(first + CHUNK, count))
