"""One run of a prompt as its local replacement model: the linear map of its operations, its units, heads and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.model.spec import Attention
from pellucid.plan.plan import Operation
from pellucid.trace.backward.reverse_walk import (
    Adjoints,
    ReverseWalk,
    Rows,
    Tape,
    Values,
    Version,
    refuse_too_long,
    tape_bytes,
    version_of,
)
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.edits import Edit
from pellucid.trace.graphs.expert_neurons import expert_neurons_of
from pellucid.trace.graphs.frozen_products import frozen_product_of
from pellucid.trace.graphs.neurons import LayerUnits, OpenedUnits, features_of, neurons_of
from pellucid.trace.traced_model import TracedModel, first_block, written_points
from pellucid.util.checks import whole

# The local replacement model of a run: its linear map, applied backwards to many gradients at once.
#
# Feed-forwards are cut at their outputs, whose values are the sum of units (features or neurons) and an error.


class Injection(NamedTuple):
    """A vector that is added to the gradient of a value: of ``copy``, at the value's ``row``."""

    copy: int
    row: int
    vector: Rows


Collect = Callable[[Version, Rows, Adjoints], Rows | None]
"""Gets a version that is collected, its gradient (N, rows, width), and the gradients of earlier versions.

Returns the gradient that continues, or None.
"""


TABLES = "embed", "per_layer.embed"  # the points of vectors that are looked up by token
GRADIENT_BYTES = 1 << 28  # maximum size of the gradients of a value for all targets of a pass
MOST_COPIES = 64


class LocalRun:
    """A run of ``prompt``.

    ``layers`` are the units of the feed-forwards, and ``opened`` the units in this run. ``outputs`` are the outputs of
    all feed-forwards. ``heads`` are the outputs of heads, if heads are nodes. ``read`` is the value that targets read,
    and ``logits`` (V,) are the last logits. ``embeddings`` are all vectors that are looked up by token. Raises
    InvalidRequest as ``attribution_graph``.
    """

    recorded_patterns = (True, False)
    """The ways to have attention patterns, in the order of preference: recorded, or computed again."""

    def __init__(
        self,
        model: TracedModel,
        prompt: Any,
        dictionary: Dictionary | None,
        heads: bool,
        edits: Sequence[Edit],
        budget: int,
    ) -> None:
        if model.spec.task != "generate" or model.spec.head is None or model.spec.encoder:
            raise InvalidRequest("an attribution graph needs a language model without an encoder")
        ids: list[int] = list(model.inputs.prompt(prompt))
        self.model, self.ids, self.tokens, self.weights = model, ids, len(ids), model.float_weights
        self.versions, self._points = model.plan_versions, model.points
        stream = written_points(model)
        tables = [name for name in TABLES if name in self._points]
        self.embeddings = [self._version(name) for name in tables]
        self.read = self._version("norm" if "norm" in self._points else stream[-1])
        has_positions = "position" in stream[: first_block(stream)]
        self.position = self._version("position") if has_positions else None
        # The embeddings that learned positions are added to.
        at = self.position
        self.before_position = self.versions.read(at.writer, at.buffer) if at is not None else None
        self.layers = self._layers(dictionary)
        self.outputs = self._outputs()
        cuts = {*self.outputs.values(), *(own for units in self.layers.values() for own in units.writes)}
        starts = [self.read, *(own.reads for own in self.layers.values())]
        self.heads = self._heads() if heads else {}
        self.cuts = frozenset(cuts)
        self._opened_run([*starts, *self.heads.values()], edits, whole("budget", budget, 1, 1 << 50))

    def _opened_run(self, starts: Sequence[Version], edits: Sequence[Edit], budget: int) -> None:
        """Run the prompt. Patterns that do not fit into half of the budget are computed again from queries and keys."""
        collected = dict.fromkeys([*self.cuts, *self.heads.values(), *self.embeddings])
        collected |= {} if self.position is None else {self.position: None}
        recorded = dict.fromkeys([self.read, *(own for units in self.layers.values() for own in units.recorded)])
        recorded |= {} if self.before_position is None else {self.before_position: None}
        self._collected, end = frozenset(collected), self.embeddings[0].writer
        for recorded_patterns in self.recorded_patterns:
            product_of = partial(frozen_product_of, recorded_patterns=recorded_patterns)
            self._walk = ReverseWalk(self.versions, starts, end, product_of, cuts=self.cuts)
            needs = self._walk.needs([*collected, *recorded])
            size = tape_bytes(self.versions, needs, len(self.ids), 1)
            if size <= budget // 2:
                break
        refuse_too_long(size, budget, len(self.ids))
        tape: Tape
        tape, self.logits = self.model.taped(self.ids, self.versions, needs, edits)
        self.tape = tape
        self.opened: dict[int, OpenedUnits] = {layer: own.open(self.tape) for layer, own in self.layers.items()}

    @property
    def last(self) -> NDArray[np.float32]:
        """The value (D,) that targets read, at the last token."""
        return self.value(self.read)[-1, : self.model.spec.embedding.width]

    @property
    def copies(self) -> int:
        versions = (*self.cuts, *self.heads.values(), *self.embeddings)
        widest = max(self.versions.width(version) for version in versions)
        return int(max(1, min(MOST_COPIES, GRADIENT_BYTES // (4 * widest * self.tokens))))

    def value(self, version: Version) -> Rows:
        return self.tape.value(version)

    def head_shape(self, layer: int) -> tuple[int, int]:
        view = self._points[f"blocks.{layer}.attention.heads"].view
        return view.parts, view.count

    def head_values(self, layer: int) -> NDArray[np.float32]:
        H, V = self.head_shape(layer)
        rows = np.ascontiguousarray(self.value(self.heads[layer])[:, : H * V])
        return rows.reshape(len(rows), H, V)

    def pass_back(
        self, targets: Sequence[tuple[Version, Injection]], collect: Collect, copies: int | None = None
    ) -> None:
        """Go back from the directions of targets, each with the number of its copy. ``collect`` gets the gradients."""
        injections = dict[Version, list[Injection]]()
        for version, injection in targets:
            injections.setdefault(version, []).append(injection)
        to_end = any(self.versions.rows(version) == "outputs" for version in injections)
        tokens = self.tokens if to_end else 1 + max(one.row for _, one in targets)
        count, tape = copies or len(targets), self.tape
        picked = np.arange(min(tape.first_output, tokens - 1), tokens)
        shared = Values(self.versions.plan, self.weights, {}, [slice(0, tokens)], picked)
        adjoints, rows = Adjoints(self.versions), {"tokens": tokens, "outputs": len(picked)}

        def taken(number: int, op: Operation) -> dict[str, Rows]:
            gradients = dict[str, Rows]()
            for name in op.writes:
                version = Version(name, number)
                own = adjoints.take(version)
                if own is not None and version in self._collected:
                    found = collect(version, own.reshape(count, rows[op.rows], -1), adjoints)
                    own = None if found is None else found.reshape(count * rows[op.rows], -1)
                if given := injections.get(version):
                    own = self._injected(own, given, version, count, rows[op.rows])
                if own is not None:
                    gradients[name] = own
            return gradients

        def values(number: int, gradients: Mapping[str, Rows]) -> Values:
            recorded = {name: own[:tokens] for name, own in self._walk.recorded(number, [tape]).items()}
            patterns = [tape.pattern(number)] if self._walk.products[number].patterns else []
            made: Values = replace(shared, values=recorded, gradients=gradients, patterns=patterns)
            return made

        self._walk.run(adjoints, max(version.writer for version in injections), taken, values)

    def _injected(self, own: Rows | None, given: Sequence[Injection], version: Version, copies: int, rows: int) -> Rows:
        width = self.versions.width(version)
        found = np.zeros((copies * rows, width), np.float32) if own is None else own
        if not found.flags.writeable:
            found = found.copy()
        at = np.array([one.copy * rows + one.row for one in given])
        vectors = np.stack([one.vector for one in given])
        np.add.at(found[:, : vectors.shape[1]], at, vectors)
        return found

    def skip(self, layer: int, gradient: Rows, adjoints: Adjoints) -> None:
        """Add the gradient (N, rows, D) of a feed-forward's output to its input, through a skip matrix."""
        units = self.layers[layer]
        found = units.skipped(gradient.reshape(-1, gradient.shape[2]))
        if found is not None:
            adjoints.add(units.reads, found)

    def _version(self, name: str) -> Version:
        return version_of(self._points[name], self.versions)

    def _layers(self, dictionary: Dictionary | None) -> dict[int, LayerUnits]:
        found = dict[int, LayerUnits]()
        for layer, coder in (dictionary.coders if dictionary is not None else {}).items():
            found[layer] = features_of(coder, layer, self.versions)
        if any(len(units.writes) > 1 for units in found.values()):
            return found  # features of other layers write to the layers without a coder
        for layer in range(len(self.model.spec.blocks)):
            kinds = (neurons_of, expert_neurons_of)
            made = (units_of(layer, self.versions, self._points, self.weights) for units_of in kinds)
            if (own := next((units for units in made if units is not None), None)) is not None:
                found.setdefault(layer, own)
        return dict(sorted(found.items()))

    def _outputs(self) -> Mapping[int, Version]:
        """The output of each feed-forward: where its units write, else its last value before the residual stream."""
        found = dict[int, Version]()
        written = {version: units for units in self.layers.values() for version in units.writes}
        for layer in range(len(self.model.spec.blocks)):
            names = [f"blocks.{layer}.feedforward.{name}" for name in ("post_norm", "output")]
            own = [self._version(name) for name in names if name in self._points]
            if own:
                found[layer] = next((version for version in own if version in written), own[-1])
        return found

    def _heads(self) -> dict[int, Version]:
        found = dict[int, Version]()
        for layer, block in enumerate(self.model.spec.blocks):
            name = f"blocks.{layer}.attention.heads"
            if isinstance(block.attention, Attention) and name in self._points:
                found[layer] = self._version(name)
        return found
