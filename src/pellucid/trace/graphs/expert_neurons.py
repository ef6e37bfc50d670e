"""Neurons of a mixture of experts as the units of an attribution graph: of the chosen experts, and of a shared expert.

The choice of experts and their weights are constants of the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.plan.plan import At, Weights
from pellucid.plan.points import Point
from pellucid.trace.backward.layer_products import choices, opened_gate
from pellucid.trace.backward.products import FORMS
from pellucid.trace.backward.reverse_walk import Rows, Tape, Version, Versions, fields_of, size_of, version_of
from pellucid.trace.graphs.frozen_products import linear_activation
from pellucid.trace.graphs.neurons import Neurons, NeuronUnits, Numbers, Units, before_rounding, neurons_between
from pellucid.trace.traced_model import ModelWeights


class ExpertNeurons(NeuronUnits, frozen=True):
    """The neurons of a mixture, with the slots of its matrices.

    Neuron j of expert e has the number e · F + j, and neuron j of the ``shared`` expert the number E · F + j: E
    ``experts`` have F neurons (``width``) each. ``scales`` are the weights of the ``chosen`` experts. They multiply the
    inputs of the activation if ``scales_inputs``, else the results.
    """

    experts: int
    chosen: int
    width: int
    slots: Mapping[str, str]
    ids: Version
    scales: Version
    scales_inputs: bool
    shared: Neurons | None
    gate: Version | None
    reads: Version

    @property
    def recorded(self) -> tuple[Version, ...]:
        shared = () if self.shared is None else self.shared.recorded
        gate = () if self.gate is None else (self.gate,)
        return (*self.inputs.values(), self.hidden, self.ids, self.scales, *shared, *gate)

    def matrices(self, name: str) -> Rows:
        """The matrices (E, N, D) "x", "up" or "down" of all experts."""
        values = self.weights.values(self.slots[name])
        return values.reshape(self.experts, -1, values.shape[-1])

    def label(self, number: int) -> str:
        expert, neuron = divmod(number, self.width)
        return f"{expert}.{neuron}" if expert < self.experts else f"shared.{number - self.routed}"

    @property
    def routed(self) -> int:
        return self.experts * self.width

    def open(self, tape: Tape) -> OpenedExperts:
        return OpenedExperts(self, tape)


class OpenedExperts:
    """The neurons of the experts in a run. A token's units are the neurons of its C experts, then of the shared expert.

    They are linearised by the half rule (``frozen_products.py``).
    """

    def __init__(self, own: ExpertNeurons, tape: Tape) -> None:
        self._own, C, F = own, own.chosen, own.width
        self._ids = choices(tape.value(own.ids), C).astype(np.int64)

        def by_choice(version: Version) -> Rows:
            return tape.value(version).reshape(len(self._ids), C, -1)[:, :, :F]

        scales = tape.value(own.scales)[:, :C, None]
        self._values = by_choice(own.hidden)
        self._scales = np.ones_like(scales) if own.scales_inputs else scales
        factors = linear_activation(own.activation, {name: by_choice(version) for name, version in own.inputs.items()})
        of_inputs = scales if own.scales_inputs else np.float32(1)
        self._factors = {name: np.asarray(factor * of_inputs, np.float32) for name, factor in factors.items()}
        self._shared = None if own.shared is None else own.shared.open(tape)
        ones = np.ones((len(self._ids), 1), np.float32)
        self._gate = ones if own.gate is None else opened_gate(tape.value(own.gate))
        # The units of a token: of its chosen experts, then of the shared expert.
        self._of_chosen = C * F
        self._of_token = C * F + (0 if self._shared is None else self._shared.count // len(self._ids))
        self.count = len(self._ids) * self._of_token

    def before(self, row: int) -> int:
        return row * self._of_token

    def units(self, chosen: Numbers) -> Units:
        rows, columns = np.divmod(chosen, self._of_token)
        numbers, activations = np.empty_like(rows), np.empty(len(rows), np.float32)
        routed = columns < self._of_chosen
        t, (choice, neuron) = rows[routed], np.divmod(columns[routed], self._own.width)
        numbers[routed] = self._ids[t, choice] * self._own.width + neuron
        activations[routed] = self._values[t, choice, neuron]
        if self._shared is not None:
            each = self._of_token - self._of_chosen
            own = self._shared.units(rows[~routed] * each + columns[~routed] - self._of_chosen)
            numbers[~routed] = self._own.routed + own.numbers
            activations[~routed] = own.activations
        return Units(rows, numbers, activations)

    def vectors(self, units: Units) -> Rows:
        part, shared, routed = self._parts(units)
        down = self._own.matrices("down")
        found = np.empty((len(units.rows), down.shape[1]), np.float32)
        scales = self._scales[part.rows, part.choices] * units.activations[routed][:, None]
        found[routed] = down[part.experts, :, part.neurons] * scales
        if self._shared is not None:
            found[~routed] = self._shared.vectors(shared)[:, 0] * self._gate[shared.rows]
        return found[:, None]

    def directions(self, units: Units) -> Rows:
        part, shared, routed = self._parts(units)
        found = np.zeros((len(units.rows), self._own.matrices("x").shape[2]), np.float32)
        for name, factors in self._factors.items():
            rows = self._own.matrices(name)[part.experts, part.neurons]
            found[routed] += factors[part.rows, part.choices, part.neurons][:, None] * rows
        if self._shared is not None:
            found[~routed] = self._shared.directions(shared)
        return found

    def effects(self, version: Version, gradient: Rows) -> Rows:
        (N, rows, _), down = gradient.shape, self._own.matrices("down")
        found = np.zeros((N, rows, *self._values.shape[1:]), np.float32)
        for expert, t, choice in self._by_expert(rows):
            found[:, t, choice] = gradient[:, t, : down.shape[1]] @ down[expert]
        found *= self._values[:rows] * self._scales[:rows]
        found = found.reshape(N, rows, -1)
        if self._shared is not None:
            own = self._shared.effects(version, gradient).reshape(N, rows, -1) * self._gate[:rows]
            found = np.concatenate([found, own], 2)
        return found.reshape(N, -1)

    def passed(self, effects: Rows, rows: int) -> Rows:
        N, (C, F) = len(effects), self._values.shape[1:]
        each = effects.reshape(N, rows, -1)
        routed, own = each[:, :, : self._of_chosen].reshape(N, rows, C, F), self._values[:rows]
        slopes = np.divide(routed, own, out=np.zeros_like(routed), where=own != 0)
        matrices = {name: self._own.matrices(name) for name in self._factors}
        found = np.zeros((N, rows, matrices["x"].shape[2]), np.float32)
        for expert, t, choice in self._by_expert(rows):
            for name, factors in self._factors.items():
                found[:, t] += (slopes[:, t, choice] * factors[t, choice]) @ matrices[name][expert]
        if self._shared is not None:
            found += self._shared.passed(each[:, :, self._of_chosen :].reshape(N, -1), rows)
        return found

    def _by_expert(self, rows: int) -> Iterator[tuple[int, Numbers, Numbers]]:
        """Each expert that the first tokens chose, with these tokens, and its place among their choices."""
        for expert in np.unique(self._ids[:rows]).tolist():
            t, choice = np.nonzero(self._ids[:rows] == expert)
            yield expert, t, choice

    def _parts(self, units: Units) -> tuple[RoutedUnits, Units, NDArray[np.bool_]]:
        """The units of routed experts, the units of the shared expert, and a mask of the routed ones."""
        routed = units.numbers < self._own.routed
        rows, (experts, neurons) = units.rows[routed], np.divmod(units.numbers[routed], self._own.width)
        places = (self._ids[rows] == experts[:, None]).argmax(1)
        shared = units.at(np.flatnonzero(~routed))
        return (
            RoutedUnits(rows, experts, places, neurons),
            shared._replace(numbers=shared.numbers - self._own.routed),
            routed,
        )


class RoutedUnits(NamedTuple):
    """Neurons of chosen experts: their tokens, their experts with the places among the choices, and their numbers."""

    rows: Numbers
    experts: Numbers
    choices: Numbers
    neurons: Numbers


def expert_neurons_of(
    layer: int, versions: Versions, points: Mapping[str, Point], weights: ModelWeights
) -> ExpertNeurons | None:
    """The neurons of a block's mixture. None if it is no mixture, or has norms of its own."""
    stage = f"blocks.{layer}.feedforward"
    names = ("experts.hidden", "experts", "expert_weights", "output")
    if any(f"{stage}.{name}" not in points for name in names):
        return None
    hidden, ids, scales, output = (version_of(points[f"{stage}.{name}"], versions) for name in names)
    operations = versions.plan.operations
    combine, op = operations[output.writer], operations[hidden.writer]
    view = op.views[0]
    if combine.kernel.name != "combine" or view is None:
        return None

    def read(name: str) -> Version | None:
        found = combine.fields[name]
        return versions.read(output.writer, found.buffer) if isinstance(found, At) else None

    results, shared = read("results"), read("shared")
    assert results is not None
    own = None
    if shared is not None:
        own = neurons_between(layer, versions, version_of(points[f"{stage}.shared.hidden"], versions), shared, weights)
        if own is None:
            return None
    fields = [name for name in ("x", "up") if isinstance(op.fields[name], At)]
    inputs = {name: versions.read(hidden.writer, fields_of(op, [name])[0]) for name in fields}
    slots, reads = {"down": _matrices(versions, results)[0]}, hidden
    for name, version in inputs.items():
        slots[name], reads = _matrices(versions, version)
    return ExpertNeurons(
        layer=layer,
        experts=size_of(operations[results.writer], "experts"),
        chosen=view.parts,
        width=view.count,
        activation=op,
        slots=slots,
        inputs=inputs,
        hidden=hidden,
        ids=ids,
        scales=scales,
        scales_inputs=not isinstance(combine.fields["weights"], At),
        shared=own,
        gate=read("gate"),
        reads=reads,
        output=output,
        weights=weights,
    )


def _matrices(versions: Versions, version: Version) -> tuple[str, Version]:
    """The slot of the experts' matrices that write a version, before weights, and the version that they read."""
    op = versions.plan.operations[version.writer]
    while op.kernel.name == "weigh":
        version = versions.read(version.writer, version.buffer)
        op = versions.plan.operations[version.writer]
    weights = op.fields["weights"]
    assert FORMS[op.kernel.name] == "matmul_experts"
    assert isinstance(weights, Weights)
    return weights.slot, before_rounding(versions, versions.read(version.writer, fields_of(op, ["x"])[0]))
