"""The candidates for nodes of an attribution graph, and its edges: a row for each target, a column for each source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.trace.backward.reverse_walk import Adjoints, Rows, Version
from pellucid.trace.graphs.graph_files import GraphNode
from pellucid.trace.graphs.local_run import Injection, LocalRun
from pellucid.trace.graphs.neurons import LayerUnits, Numbers, Units, by_row
from pellucid.trace.graphs.targets import GraphTarget


class EdgeSource(Protocol):
    """Values of one kind and layer."""

    @property
    def versions(self) -> tuple[Version, ...]: ...

    @property
    def count(self) -> int: ...

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        """The nodes, and what they contribute through a version, for its gradients (N, rows, width): (N, n)."""


class RowVectors:
    """The vectors (rows, D) at each token of one or more versions, such as embeddings and errors."""

    def __init__(self, vectors: Mapping[Version, Rows]) -> None:
        self.versions = tuple(vectors)
        self._vectors = {version: np.ascontiguousarray(own, np.float32) for version, own in vectors.items()}
        self.count = len(self._vectors[self.versions[0]])

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        own = self._vectors[version][: gradient.shape[1]]
        return slice(0, len(own)), np.einsum("nrd,rd->nr", gradient[:, :, : own.shape[1]], own)


class UnitVectors:
    """The vectors (n, O, D) of units at the tokens ``rows``, in order, which write to O versions."""

    def __init__(self, versions: Sequence[Version], rows: Numbers, vectors: Rows) -> None:
        self.versions, self.count = tuple(versions), len(rows)
        self._rows, self._vectors = rows, [np.ascontiguousarray(own) for own in vectors.swapaxes(0, 1)]

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        vectors = self._vectors[self.versions.index(version)]
        count = int(np.searchsorted(self._rows, gradient.shape[1]))
        found = np.zeros((len(gradient), count), np.float32)
        for row, mine in by_row(self._rows[:count]):
            found[:, mine] = gradient[:, row, : vectors.shape[1]] @ vectors[mine].T
        return slice(0, count), found

    def subtract_from(self, version: Version, values: Rows) -> None:
        vectors = self._vectors[self.versions.index(version)]
        for row, mine in by_row(self._rows):
            values[row, : vectors.shape[1]] -= vectors[mine].sum(0)


class HeadVectors:
    """The outputs of some heads at some tokens: (n,) rows and numbers of heads, in the order of rows.

    ``values`` (T, H, V) are the outputs of all heads. The gradient of a chosen head does not continue.
    """

    def __init__(self, version: Version, rows: Numbers, heads: Numbers, values: Rows) -> None:
        self.versions, self.rows, self.heads, self._values = (version,), rows, heads, values
        self.count = len(rows)

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        count = int(np.searchsorted(self.rows, gradient.shape[1]))
        rows, heads = self.rows[:count], self.heads[:count]
        own = by_head(gradient, self._values.shape[1:])[:, rows, heads]
        return slice(0, count), np.einsum("njv,jv->nj", own, self._values[rows, heads])

    def continued(self, gradient: Rows) -> Rows:
        count = int(np.searchsorted(self.rows, gradient.shape[1]))
        found = gradient.copy()
        by_head(found, self._values.shape[1:])[:, self.rows[:count], self.heads[:count]] = 0
        return found


def by_head(gradient: Rows, shape: tuple[int, ...]) -> NDArray[np.float32]:
    H, V = shape
    return gradient[:, :, : H * V].reshape(*gradient.shape[:2], H, V)


# The choice of the units and heads that may be nodes of an attribution graph, by their attribution.
#
# A pass from the targets goes back through all units and heads at once. The attribution of a unit is its effect on each
# target over all paths: the sum of the absolute effects, times the weights of the targets.


class ChosenHeads(NamedTuple):
    """Heads of a block: their tokens and numbers (n,), in the order of tokens.

    ``directions`` (n, V) are the directions along which the weighted sum of the targets reads them.
    """

    rows: Numbers
    numbers: Numbers
    directions: Rows


class ChosenNodes(NamedTuple):
    units: dict[int, Units]
    heads: dict[int, ChosenHeads]


def choose(run: LocalRun, targets: Sequence[GraphTarget], units: int, heads: int, first: int) -> ChosenNodes:
    """The units and heads with the largest attributions, from the token ``first`` on.

    ``units`` and ``heads`` are the maximum numbers of units and of heads.
    """
    starts = {layer: own.before(first) for layer, own in run.opened.items()}
    count = sum(own.count - starts[layer] for layer, own in run.opened.items())
    if count <= units and not run.heads:
        return ChosenNodes(_all(run, starts), {})
    found = Attributions(run, targets)
    for layer, start in starts.items():
        found.units[layer][:start] = 0
    for of_heads in found.heads.values():
        of_heads[:first] = 0
    kept = _all(run, starts) if count <= units else {
        layer: run.opened[layer].units(own) for layer, own in _largest(found.units, units).items()
    }  # fmt: skip
    best = _largest({layer: own.ravel() for layer, own in found.heads.items()}, heads) if run.heads else {}
    made = dict[int, ChosenHeads]()
    for layer, at in best.items():
        rows, numbers = np.unravel_index(at, found.heads[layer].shape)
        made[layer] = ChosenHeads(rows, numbers, found.gradients[layer][rows, numbers])
    return ChosenNodes(kept, made)


def _all(run: LocalRun, starts: dict[int, int]) -> dict[int, Units]:
    """All units with an activation that is not 0, from the first token on."""
    found = {layer: own.units(np.arange(starts[layer], own.count)) for layer, own in run.opened.items()}
    return {layer: own.at(np.flatnonzero(own.activations)) for layer, own in found.items()}


def _largest(scores: dict[int, NDArray[np.float32]], most: int) -> dict[int, Numbers]:
    """The indices of the ``most`` largest scores that are not 0, by layer."""
    best = {
        layer: np.arange(len(own)) if len(own) <= most else np.argpartition(-own, most)[:most]
        for layer, own in scores.items()
    }
    flat = np.concatenate([scores[layer][own] for layer, own in best.items()])
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(-flat, kind="stable")[:most]] = True
    kept &= flat > 0
    ends = np.cumsum([len(own) for own in best.values()])
    return {layer: np.sort(own[kept[end - len(own) : end]]) for (layer, own), end in zip(best.items(), ends.tolist())}


class Attributions:
    """The attributions of ``units`` (n,) and ``heads`` (T, H), by block.

    ``gradients`` (T, H, V) are the gradients of the weighted sum of the targets by the outputs of heads.
    """

    def __init__(self, run: LocalRun, targets: Sequence[GraphTarget]) -> None:
        self._run, self._weights = run, np.array([target.weight for target in targets], np.float32)
        self.units = {layer: np.zeros(own.count, np.float32) for layer, own in run.opened.items()}
        self.heads = {layer: np.zeros((run.tokens, run.head_shape(layer)[0]), np.float32) for layer in run.heads}
        self.gradients = {layer: np.zeros((run.tokens, *run.head_shape(layer)), np.float32) for layer in run.heads}
        self._effects = dict[int, Rows]()
        """The effects (N, n) of units, of layers that the pass is at."""
        self._head_layers = {version: layer for layer, version in run.heads.items()}
        run.pass_back(injections(run, targets), self._collect, len(targets))

    def _collect(self, version: Version, gradient: Rows, adjoints: Adjoints) -> Rows | None:
        if (layer := self._head_layers.get(version)) is not None:
            values = self._run.head_values(layer)
            own = by_head(gradient, values.shape[1:])
            effects = np.abs(np.einsum("nthv,thv->nth", own, values))
            self.heads[layer] = np.einsum("n,nth->th", self._weights, effects)
            self.gradients[layer] = np.einsum("n,nthv->thv", self._weights, own)
        for layer, units in self._run.layers.items():
            if version in units.writes:
                found = self._run.opened[layer].effects(version, gradient)
                self._effects[layer] = found + self._effects[layer] if layer in self._effects else found
            if version == units.writes[0]:  # the other outputs come later in the model
                effects = self._effects.pop(layer)
                self.units[layer] = self._weights @ np.abs(effects)
                passed = self._run.opened[layer].passed(effects, gradient.shape[1])
                self._run.skip(layer, gradient, adjoints)
                adjoints.add(units.reads, passed.reshape(-1, passed.shape[2]))
        return None if version in self._run.cuts else gradient


def injections(run: LocalRun, targets: Sequence[GraphTarget]) -> list[tuple[Version, Injection]]:
    """The directions of targets, at the last token, each in a copy of its own."""
    row = 0 if run.versions.rows(run.read) == "outputs" else run.tokens - 1
    return [(run.read, Injection(copy, row, target.direction)) for copy, target in enumerate(targets)]


# The edges from all sources to some targets: a row for each target, a column for each source.


class Columns(Struct, frozen=True):
    """The columns of a ``source``, from ``first`` on, with the ``kind`` and the ``layer`` of its nodes.

    Targets can be the ``units`` of a feed-forward, or ``heads``.
    """

    first: int
    source: EdgeSource
    kind: str
    layer: int | None
    units: tuple[LayerUnits, Units] | None = None
    heads: ChosenHeads | None = None

    @property
    def stop(self) -> int:
        return self.first + self.source.count


class EdgeTable:
    """The sources of a run, in the order: heads, units, errors, positions, embeddings.

    ``heads``, ``units`` and ``count`` are the numbers of the columns of heads and of units, and of all columns. Errors
    of tokens before ``first`` are left out.
    """

    def __init__(self, run: LocalRun, candidates: ChosenNodes, first: int) -> None:
        self.run, self.count, self.parts = run, 0, list[Columns]()
        self._first = first
        for layer, heads in candidates.heads.items():
            if len(heads.rows):
                source = HeadVectors(run.heads[layer], heads.rows, heads.numbers, run.head_values(layer))
                self._add(source, "head", layer, heads=heads)
        self.heads = self.count
        rests = self._outputs()
        for layer, units in candidates.units.items():
            own = run.layers[layer]
            vectors = UnitVectors(own.writes, units.rows, run.opened[layer].vectors(units))
            for version in own.writes:
                vectors.subtract_from(version, rests[version])
            self._add(vectors, own.kind, layer, units=(own, units))
        self.units = self.count - self.heads
        for layer, version in run.outputs.items():
            rests[version][:first] = 0
            self._add(RowVectors({version: rests[version]}), "error", layer)
        if run.position is not None and run.before_position is not None:
            added = run.value(run.position) - run.value(run.before_position)
            self._add(RowVectors({run.position: added}), "position", None)
        embeddings = {version: run.value(version) for version in run.embeddings}
        self._add(RowVectors(embeddings), "embedding", None)
        self._of_version = dict[Version, list[Columns]]()
        for part in self.parts:
            for version in part.source.versions:
                self._of_version.setdefault(version, []).append(part)
        self._skips = {own.writes[0]: layer for layer, own in run.layers.items()}

    def _add(self, source: EdgeSource, kind: str, layer: int | None, **targets: Any) -> None:
        self.parts.append(Columns(self.count, source, kind, layer, **targets))
        self.count += source.count

    def has_node(self) -> NDArray[np.bool_]:
        """True for the columns that can be nodes: of errors only those from the first token on."""
        found = np.ones(self.count, bool)
        for part in self.parts:
            if part.kind == "error":
                found[part.first : part.first + self._first] = False
        return found

    def _outputs(self) -> dict[Version, Rows]:
        """The outputs of the feed-forwards, without linear paths beside their units."""
        found = {version: np.array(self.run.value(version)) for version in self.run.outputs.values()}
        for own in self.run.layers.values():
            skip = own.skip(self.run.tape)
            if skip is not None:
                found[own.writes[0]][:, : skip.shape[1]] -= skip
        return found

    def fill(self, edges: Rows, targets: Sequence[tuple[Version, Injection]]) -> None:
        def collect(version: Version, gradient: Rows, adjoints: Adjoints) -> Rows | None:
            continued = None if version in self.run.cuts else gradient
            for part in self._of_version.get(version, ()):
                columns, found = part.source.contributions(version, gradient)
                edges[:, part.first + columns.start : part.first + columns.stop] += found
                if isinstance(part.source, HeadVectors):
                    continued = part.source.continued(gradient)
            if version in self._skips:
                self.run.skip(self._skips[version], gradient, adjoints)
            return continued

        if targets:
            self.run.pass_back(targets, collect)

    def targets(self, columns: Numbers) -> list[tuple[Version, Injection]]:
        """The versions and directions of units and heads as targets, each in a copy of its own."""
        found = dict[int, tuple[Version, Injection]]()
        order = {column: copy for copy, column in enumerate(columns.tolist())}
        for part in self.parts:
            own = columns[(columns >= part.first) & (columns < part.stop)] - part.first
            if not len(own):
                continue
            if part.heads is not None:
                assert part.layer is not None
                rows, version = part.heads.rows, part.source.versions[0]
                directions = np.zeros((len(own), *self.run.head_shape(part.layer)), np.float32)
                directions[np.arange(len(own)), part.heads.numbers[own]] = part.heads.directions[own]
            elif part.units is not None:
                layer, units = part.units
                rows, version = units.rows, layer.reads
                directions = self.run.opened[layer.layer].directions(units.at(own))
            for at, direction in zip(own.tolist(), directions):
                injection = Injection(order[part.first + at], int(rows[at]), direction.ravel())
                found[part.first + at] = version, injection
        return [found[column] for column in columns.tolist()]

    def rows(self) -> Numbers:
        rows = [part.heads.rows for part in self.parts if part.heads is not None]
        rows += [part.units[1].rows for part in self.parts if part.units is not None]
        return np.concatenate([*rows, np.empty(0, np.int64)])

    def fold(self, edges: Rows, left: Numbers) -> None:
        """Add the edges of units without a node (``left``: columns) to the errors of their feed-forwards."""
        errors = {part.layer: part.first for part in self.parts if part.kind == "error"}
        for part in self.parts:
            own = left[(left >= part.first) & (left < part.stop)]
            if len(own) and part.units is not None:
                rows = errors[part.layer] + part.units[1].rows[own - part.first]
                np.add.at(edges.T, rows, edges.T[own])

    def nodes(self) -> Iterator[GraphNode]:
        for part in self.parts:
            for at in range(part.source.count):
                yield self._node(part, at)

    def _node(self, part: Columns, at: int) -> GraphNode:
        if part.heads is not None:
            row, head = int(part.heads.rows[at]), int(part.heads.numbers[at])
            assert part.layer is not None
            value = self.run.head_values(part.layer)[row, head] @ part.heads.directions[at]
            return GraphNode("head", part.layer, row, head, float(value))
        if part.units is not None:
            layer, units = part.units
            number, activation = int(units.numbers[at]), float(units.activations[at])
            label = layer.label(number)
            text = "" if label == str(number) else label
            return GraphNode(part.kind, part.layer, int(units.rows[at]), number, activation, text)
        token = self.run.ids[at]
        text = self.run.model.tokenizer.piece(token) if part.kind == "embedding" else ""
        return GraphNode(part.kind, part.layer, at, token if part.kind == "embedding" else -1, 0.0, text)
