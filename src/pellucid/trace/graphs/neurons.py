"""The units of feed-forwards in a graph: neurons after the activation, and features of transcoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.plan import Operation, Weights
from pellucid.plan.points import Point
from pellucid.trace.backward.layer_products import through_threshold
from pellucid.trace.backward.products import FORMS
from pellucid.trace.backward.reverse_walk import Rows, number_of
from pellucid.trace.backward.tape import Tape, Version, Versions, fields_of, version_of
from pellucid.trace.dictionaries.sparse_coder import SparseCoder
from pellucid.trace.graphs.frozen_products import linear_activation
from pellucid.trace.graphs.units import Numbers, Units, by_row
from pellucid.trace.traced_model import ModelWeights

# Neurons as the units of an attribution graph: the values after the activation of a dense feed-forward.

ROWS_TOGETHER = 512
"""Number of rows of a matrix product that reads a feed-forward backwards."""


class Neurons(Struct, frozen=True):
    """The neurons of a dense feed-forward: its activation with the versions of its ``inputs``, and its matrices.

    ``threshold`` is the operation that sets all but the largest gates to 0, if there is one.
    """

    layer: int
    activation: Operation
    matrices: Mapping[str, ChainedMatrix]
    inputs: Mapping[str, Version]
    hidden: Version
    output: Version
    weights: ModelWeights
    threshold: Threshold | None = None

    kind: ClassVar[str] = "neuron"

    @property
    def reads(self) -> Version:
        return next(matrix.reads for name, matrix in self.matrices.items() if name != "down")

    @property
    def writes(self) -> tuple[Version, ...]:
        return (self.output,)

    @property
    def recorded(self) -> tuple[Version, ...]:
        of_threshold = () if self.threshold is None else (self.threshold.gates,)
        return (self.hidden, *self.inputs.values(), *of_threshold)

    def open(self, tape: Tape) -> OpenedNeurons:
        count = int(self.weights.values(self.matrices["down"].slot).shape[1])
        inputs = {name: tape.value(version)[:, :count] for name, version in self.inputs.items()}
        gates = None if self.threshold is None else tape.value(self.threshold.gates)[:, :count]
        return OpenedNeurons(self, inputs, tape.value(self.hidden)[:, :count], gates)

    def label(self, number: int) -> str:
        return str(number)

    def skipped(self, gradient: Rows) -> Rows | None:
        return None

    def skip(self, tape: Tape) -> Rows | None:
        return None


class OpenedNeurons:
    """Neurons in a run: the inputs of the activation, and its ``values`` (T, F). Unit t · F + j is neuron j at token t.

    Neurons are linearised by the half rule (``frozen_products.py``). ``gates`` (T, F) are the gates before a threshold.
    """

    def __init__(self, neurons: Neurons, inputs: Mapping[str, Rows], values: Rows, gates: Rows | None) -> None:
        self._neurons, self._inputs, self._values, self._gates = neurons, inputs, values, gates

    @property
    def count(self) -> int:
        return int(self._values.size)

    def before(self, row: int) -> int:
        return int(row * self._values.shape[1])

    def units(self, chosen: Numbers) -> Units:
        rows, numbers = np.divmod(chosen, self._values.shape[1])
        return Units(rows, numbers, self._values[rows, numbers])

    def vectors(self, units: Units) -> Rows:
        down = self._neurons.matrices["down"]
        columns = down.factor * self._neurons.weights.values(down.slot)[:, units.numbers].T
        return np.asarray(columns * units.activations[:, None], np.float32)[:, None]

    def directions(self, units: Units) -> Rows:
        found = np.zeros((len(units.rows), 1))
        for name, factors in self._linear((units.rows, units.numbers)):
            matrix = self._neurons.matrices[name]
            weights = self._neurons.weights.values(matrix.slot)
            if name == "x" and self._gates is not None:  # a threshold depends on all gates
                of_gates = np.zeros((len(factors), len(weights)), np.float32)
                of_gates[np.arange(len(factors)), units.numbers] = factors
                own = self._of_gates(of_gates, units.rows) @ weights
            else:
                own = factors[:, None] * weights[units.numbers]
            found = found + own * matrix.factor
        return found.astype(np.float32)

    def effects(self, version: Version, gradient: Rows) -> Rows:
        down, (N, rows, width) = self._neurons.matrices["down"], gradient.shape
        matrix = self._neurons.weights.values(down.slot)
        # One product, not one for each target.
        found = gradient.reshape(-1, width)[:, : len(matrix)] @ matrix
        found = found.reshape(N, rows, -1)
        found *= self._values[:rows] * np.float32(down.factor)
        return found.reshape(N, -1)

    def passed(self, effects: Rows, rows: int) -> Rows:
        own, N = self._values[:rows], len(effects)
        slopes: NDArray[Any] = effects.reshape(N, *own.shape)
        linear = [(name, factors.astype(np.float32)) for name, factors in self._linear(slice(rows))]
        found = list[Rows]()
        together = max(1, ROWS_TOGETHER // rows)
        for first in range(0, N, together):
            part = slopes[first : first + together]
            part = np.divide(part, own, out=np.zeros_like(part), where=own != 0)
            sums: Rows = np.zeros((len(part) * rows, 1), np.float32)
            for name, factors in linear:
                matrix, of_input = self._neurons.matrices[name], part * factors
                if name == "x" and self._gates is not None:
                    of_input = self._of_gates(of_input, slice(rows))
                product = (
                    of_input.reshape(len(sums), -1)
                    @ self._neurons.weights.values(matrix.slot)
                    * np.float32(matrix.factor)
                )
                sums = np.asarray(sums + product, np.float32)
            found.append(sums.reshape(len(part), rows, -1))
        return np.concatenate(found)

    def _of_gates(self, gradient: Rows, rows: Any) -> Rows:
        """The gradient of the gates at ``rows`` before the threshold."""
        threshold = self._neurons.threshold
        assert self._gates is not None
        assert threshold is not None
        gates = self._gates[rows]
        return through_threshold(gradient, gates, self._inputs["x"][rows] > 0, threshold.deviations)

    def _linear(self, chosen: Any) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """The inputs, with the factors of the linear form of chosen values."""
        x, up = (self._inputs[name][chosen] if name in self._inputs else None for name in ("x", "up"))
        assert x is not None
        for name, factors in zip(("x", "up"), linear_activation(self._neurons.activation, x, up)):
            if factors is not None:
                yield name, factors


class ChainedMatrix(NamedTuple):
    """A matrix product: its slot, the version that it reads, and a constant factor of its output."""

    slot: str
    reads: Version
    factor: float


class Threshold(NamedTuple):
    """The version of the gates before a threshold, and the threshold in standard deviations above their mean."""

    gates: Version
    deviations: float


def neurons_of(layer: int, versions: Versions, points: Mapping[str, Point], weights: ModelWeights) -> Neurons | None:
    """The neurons of a block's feed-forward. None if it is not of the form down(f(gate x) · up x)."""
    stage = f"blocks.{layer}.feedforward"
    hidden_point, output_point = points.get(f"{stage}.hidden"), points.get(f"{stage}.output")
    if hidden_point is None or output_point is None:
        return None
    hidden, output = version_of(hidden_point, versions), version_of(output_point, versions)
    return neurons_between(layer, versions, hidden, output, weights)


def neurons_between(
    layer: int, versions: Versions, hidden: Version, output: Version, weights: ModelWeights
) -> Neurons | None:
    """The neurons with the values ``hidden``, if one matrix product maps them to ``output``."""
    op, down = versions.plan.operations[hidden.writer], _matrix(versions, output)
    if op.kernel.name != "activation" or down is None or down.reads != hidden:
        return None
    names = [name for name in ("x", "up") if not isinstance(op.fields[name], int)]
    inputs = {name: versions.read(hidden.writer, fields_of(op, [name])[0]) for name in names}
    threshold = _threshold(versions, inputs["x"])
    sources = inputs if threshold is None else {**inputs, "x": threshold.gates}
    matrices = {name: matrix for name, own in sources.items() if (matrix := _matrix(versions, own))}
    if len(matrices) < len(inputs) or len({matrix.reads for matrix in matrices.values()}) > 1:
        return None
    return Neurons(layer, op, {**matrices, "down": down}, inputs, hidden, output, weights, threshold)


def _threshold(versions: Versions, version: Version) -> Threshold | None:
    """The threshold that writes a version."""
    op = versions.plan.operations[version.writer]
    if op.kernel.name != "sparsify":
        return None
    return Threshold(versions.read(version.writer, version.buffer), number_of(op, "deviations"))


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
    reads = before_rounding(versions, versions.read(version.writer, fields_of(op, ["x"])[0]))
    return ChainedMatrix(weights.slot, reads, factor)


def before_rounding(versions: Versions, version: Version) -> Version:
    """The version that was rounded to ``version``, or ``version`` if it is not rounded."""
    while (source := versions.plan.operations[version.writer]).kernel.name == "quantize":
        version = versions.read(version.writer, fields_of(source, ["x"])[0])
    return version


# Active features of transcoders as the units of an attribution graph.

CHUNK = 4096
"""Number of features whose vectors are in memory at once."""
LINEAR = ("ReLU", "JumpReLU", "top-k", "groupmax")
"""Activations that are linear in the input where they are not 0."""


class Features:
    """The active features of a transcoder."""

    kind = "feature"

    def __init__(self, layer: int, coder: SparseCoder, versions: Versions) -> None:
        self.layer, self._coder = layer, coder
        self.reads = version_of(coder.reads.point, versions)
        self.writes = tuple(version_of(own.point, versions) for own in coder.writes)

    @property
    def recorded(self) -> tuple[Version, ...]:
        return (self.reads,)

    def label(self, number: int) -> str:
        return str(number)

    def open(self, tape: Tape) -> OpenedFeatures:
        active = self._coder.active(self._input(tape))
        return OpenedFeatures(self._coder, self.writes, Units(active.rows, active.features, active.activations))

    def _input(self, tape: Tape) -> Rows:
        return np.ascontiguousarray(tape.value(self.reads)[:, : self._coder.width])

    def skipped(self, gradient: Rows) -> Rows | None:
        matrix = self._coder.skip_matrix
        return None if matrix is None else gradient[:, : len(matrix)] @ matrix

    def skip(self, tape: Tape) -> Rows | None:
        matrix = self._coder.skip_matrix
        return None if matrix is None else self._input(tape) @ matrix.T


class OpenedFeatures:
    """The active features of a transcoder in a run, as ``Units``."""

    def __init__(self, coder: SparseCoder, writes: tuple[Version, ...], active: Units) -> None:
        self._coder, self._writes, self._active = coder, writes, active

    @property
    def count(self) -> int:
        return len(self._active.rows)

    def before(self, row: int) -> int:
        return int(np.searchsorted(self._active.rows, row))

    def units(self, chosen: Numbers) -> Units:
        active = self._active
        return Units(active.rows[chosen], active.numbers[chosen], active.activations[chosen])

    def vectors(self, units: Units) -> Rows:
        return self._coder.vectors(units.numbers) * units.activations[:, None, None]

    def directions(self, units: Units) -> Rows:
        return self._coder.directions(units.numbers)

    def effects(self, version: Version, gradient: Rows) -> Rows:
        output, found = self._writes.index(version), np.zeros((len(gradient), self.count), np.float32)
        for chosen in self._chunks():
            part = self.units(chosen)
            vectors = self.vectors(part)[:, output]
            for row, mine in by_row(part.rows):
                found[:, chosen[mine]] = gradient[:, row, : vectors.shape[1]] @ vectors[mine].T
        return found

    def passed(self, effects: Rows, rows: int) -> Rows:
        found = np.zeros((len(effects), rows, self._coder.width), np.float32)
        for chosen in self._chunks():
            part = self.units(chosen)
            directions, slopes = self.directions(part), effects[:, chosen] / part.activations
            for row, mine in by_row(part.rows):
                found[:, row] += slopes[:, mine] @ directions[mine]
        return found

    def _chunks(self) -> Iterator[Numbers]:
        for first in range(0, self.count, CHUNK):
            yield np.arange(first, min(first + CHUNK, self.count))


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
