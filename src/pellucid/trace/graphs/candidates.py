"""The choice of the units and heads that may be nodes of an attribution graph, by their attribution.

A pass from the targets goes back through all units and heads at once. The attribution of a unit is its effect on each
target over all paths: the sum of the absolute effects, times the weights of the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.backward.product_values import Rows
from pellucid.trace.backward.reverse_walk import Adjoints
from pellucid.trace.backward.tape import Version
from pellucid.trace.graphs.local_model import Injection
from pellucid.trace.graphs.local_run import LocalRun
from pellucid.trace.graphs.sources import by_head
from pellucid.trace.graphs.targets import GraphTarget
from pellucid.trace.graphs.units import Numbers, Units


class ChosenHeads(NamedTuple):
    """Heads of a block: their tokens and numbers (n,), in the order of tokens.

    ``directions`` (n, V) are the directions along which the weighted sum of the targets reads them.
    """

    rows: Numbers
    numbers: Numbers
    directions: Rows


class ChosenNodes(NamedTuple):
    """The units and heads that may be nodes, by block."""

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
    best = {layer: _best(own, most) for layer, own in scores.items()}
    flat = np.concatenate([scores[layer][own] for layer, own in best.items()])
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(-flat, kind="stable")[:most]] = True
    kept &= flat > 0
    ends = np.cumsum([len(own) for own in best.values()])
    return {
        layer: np.sort(own[kept[end - len(own) : end]])
        for (layer, own), end in zip(best.items(), ends.tolist())
    }


def _best(scores: NDArray[np.float32], most: int) -> Numbers:
    """The indices of the ``most`` largest scores."""
    return np.arange(len(scores)) if len(scores) <= most else np.argpartition(-scores, most)[:most]


class Attributions:
    """The attributions of ``units`` (n,) and ``heads`` (T, H), by block.

    ``gradients`` (T, H, V) are the gradients of the weighted sum of the targets by the outputs of heads.
    """

    def __init__(self, run: LocalRun, targets: Sequence[GraphTarget]) -> None:
        self._run, self._weights = run, np.array([target.weight for target in targets], np.float32)
        self.units = {layer: np.zeros(own.count, np.float32) for layer, own in run.opened.items()}
        self.heads = {
            layer: np.zeros((run.tokens, run.head_shape(layer)[0]), np.float32) for layer in run.heads
        }
        self.gradients = {
            layer: np.zeros((run.tokens, *run.head_shape(layer)), np.float32) for layer in run.heads
        }
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
