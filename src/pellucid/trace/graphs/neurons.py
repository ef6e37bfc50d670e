"""The units of feed-forwards in a graph: neurons after the activation, and features of transcoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.plan.plan import Operation, Weights
from pellucid.plan.points import Point
from pellucid.trace.backward.layer_products import through_threshold
from pellucid.trace.backward.products import FORMS
from pellucid.trace.backward.reverse_walk import Rows, Tape, Version, Versions, fields_of, number_of, version_of
from pellucid.trace.dictionaries.sparse_coder import SparseCoder
from pellucid.trace.graphs.frozen_products import linear_activation
from pellucid.trace.traced_model import ModelWeights

# The units of feed-forwards: neurons of the model, and features of transcoders.
#
# A unit has an activation at a token. It reads the input of its feed-forward along a *direction*, and writes its
# activation times a *vector* to the output of its feed-forward (a feature of a cross-layer transcoder also to later
# ones).

Numbers = NDArray[np.int64]


class Units(NamedTuple):
    """Some units of a layer: their tokens (rows of the feed-forward), their numbers, and their activations, (n,).

    They are in the order of tokens.
    """

    rows: Numbers
    numbers: Numbers
    activations: Rows

    def at(self, chosen: Numbers) -> Units:
        return Units(self.rows[chosen], self.numbers[chosen], self.activations[chosen])


class OpenedUnits(Protocol):
    """The units of a feed-forward in a run, in the order of tokens. Some may have an activation of 0."""

    @property
    def count(self) -> int: ...

    def before(self, row: int) -> int:
        """The number of units at the tokens before a token."""

    def units(self, chosen: Numbers) -> Units: ...

    def vectors(self, units: Units) -> Rows:
        """The addition of each unit to each output, (n, O, D)."""

    def directions(self, units: Units) -> Rows:
        """The directions (n, D): times the input, and plus biases, they give the activations."""

    def effects(self, version: Version, gradient: Rows) -> Rows:
        """The effects (N, count) of all units through an output, for its gradients (N, rows, D)."""

    def passed(self, effects: Rows, rows: int) -> Rows:
        """The gradients (N, rows, D) of the input, for the effects (N, count) of all units."""


class LayerUnits(Protocol):
    """The units of a feed-forward of a ``layer``, of one ``kind``: "neuron" or "feature"."""

    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...

    @property
    def reads(self) -> Version: ...

    @property
    def writes(self) -> tuple[Version, ...]:
        """Its output first, then later outputs."""

    @property
    def recorded(self) -> tuple[Version, ...]:
        """The versions that a tape must record."""

    def label(self, number: int) -> str: ...

    def open(self, tape: Tape) -> OpenedUnits: ...

    def skipped(self, gradient: Rows) -> Rows | None:
        """The gradient (n, D) of the input through a linear path from input to output beside the units."""

    def skip(self, tape: Tape) -> Rows | None:
        """The output of this path in a run, (rows, D)."""


def by_row(rows: Numbers) -> Iterator[tuple[int, slice]]:
    """The units of each token in sorted ``rows`` (n,): the token, and the slice of its units."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)]):
        yield int(rows[start]), slice(start, stop)


# Neurons as the units of an attribution graph: the values after the activation of a dense feed-forward.

ROWS_TOGETHER = 512  # number of rows of a matrix product that reads a feed-forward backwards


class NeuronUnits(Struct, frozen=True):
    """Neurons as units: the ``activation`` with the versions of its ``inputs``, its value, and the output."""

    layer: int
    activation: Operation
    inputs: Mapping[str, Version]
    hidden: Version
    output: Version
    weights: ModelWeights

    kind: ClassVar[str] = "neuron"

    @property
    def writes(self) -> tuple[Version, ...]:
        return (self.output,)

    def label(self, number: int) -> str:
        return str(number)

    def skipped(self, gradient: Rows) -> Rows | None:
        return None

    def skip(self, tape: Tape) -> Rows | None:
        return None


class Neurons(NeuronUnits, frozen=True):
    """The neurons of a dense feed-forward, with its matrices.

    ``threshold`` is the operation that sets all but the largest gates to 0, if there is one.
    """

    matrices: Mapping[str, ChainedMatrix]
    threshold: Threshold | None = None

    @property
    def reads(self) -> Version:
        return next(matrix.reads for name, matrix in self.matrices.items() if name != "down")

    @property
    def recorded(self) -> tuple[Version, ...]:
        of_threshold = () if self.threshold is None else (self.threshold.gates,)
        return (self.hidden, *self.inputs.values(), *of_threshold)

    def open(self, tape: Tape) -> OpenedNeurons:
        return OpenedNeurons(self, tape)


class OpenedNeurons:
    """Neurons in a run: the inputs of the activation, and its ``values`` (T, F). Unit t · F + j is neuron j at token t.

    Neurons are linearised by the half rule (``frozen_products.py``). ``gates`` (T, F) are the gates before a threshold.
    """

    def __init__(self, neurons: Neurons, tape: Tape) -> None:
        self._neurons, threshold = neurons, neurons.threshold
        count = int(neurons.weights.values(neurons.matrices["down"].slot).shape[1])
        self._inputs = {name: tape.value(version)[:, :count] for name, version in neurons.inputs.items()}
        self._values: Rows = tape.value(neurons.hidden)[:, :count]
        self.count = int(self._values.size)
        self._gates = None if threshold is None else tape.value(threshold.gates)[:, :count]

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
        for name, factors in self._linear((units.rows, units.numbers)).items():
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
        linear = {name: factors.astype(np.float32) for name, factors in self._linear(slice(rows)).items()}
        found = list[Rows]()
        together = max(1, ROWS_TOGETHER // rows)
        for first in range(0, N, together):
            part = slopes[first : first + together]
            part = np.divide(part, own, out=np.zeros_like(part), where=own != 0)
            sums: Rows = np.zeros((len(part) * rows, 1), np.float32)
            for name, factors in linear.items():
                matrix, of_input = self._neurons.matrices[name], part * factors
                if name == "x" and self._gates is not None:
                    of_input = self._of_gates(of_input, slice(rows))
                product = of_input.reshape(len(sums), -1) @ self._neurons.weights.values(matrix.slot)
                sums = np.asarray(sums + product * np.float32(matrix.factor), np.float32)
            found.append(sums.reshape(len(part), rows, -1))
        return np.concatenate(found)

    def _of_gates(self, gradient: Rows, rows: Any) -> Rows:
        """The gradient of the gates at ``rows`` before the threshold."""
        threshold = self._neurons.threshold
        assert self._gates is not None
        assert threshold is not None
        gates = self._gates[rows]
        return through_threshold(gradient, gates, self._inputs["x"][rows] > 0, threshold.deviations)

    def _linear(self, chosen: Any) -> dict[str, NDArray[np.float64]]:
        return linear_activation(self._neurons.activation, {name: own[chosen] for name, own in self._inputs.items()})


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
    writer, threshold = versions.plan.operations[inputs["x"].writer], None
    if writer.kernel.name == "sparsify":
        threshold = Threshold(versions.read(inputs["x"].writer, inputs["x"].buffer), number_of(writer, "deviations"))
    sources = inputs if threshold is None else {**inputs, "x": threshold.gates}
    matrices = {name: matrix for name, own in sources.items() if (matrix := _matrix(versions, own))}
    if len(matrices) < len(inputs) or len({matrix.reads for matrix in matrices.values()}) > 1:
        return None
    return Neurons(layer, op, inputs, hidden, output, weights, {**matrices, "down": down}, threshold)


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
    while (source := versions.plan.operations[version.writer]).kernel.name == "quantize":
        version = versions.read(version.writer, fields_of(source, ["x"])[0])
    return version


CHUNK = 4096  # number of features whose vectors are in memory at once
LINEAR = ("ReLU", "JumpReLU", "top-k", "groupmax")
"""Activations that are linear in the input where they are not 0."""


class Features:
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
    def __init__(self, coder: SparseCoder, writes: tuple[Version, ...], active: Units) -> None:
        self._coder, self._writes, self._active = coder, writes, active
        self.count = len(active.rows)

    def before(self, row: int) -> int:
        return int(np.searchsorted(self._active.rows, row))

    def units(self, chosen: Numbers) -> Units:
        return self._active.at(chosen)

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
    """The features of a transcoder for a block. Raises InvalidRequest if the coder is no transcoder of a feed-forward,
    or its activations are not linear in its input.
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
