"""Features of a dictionary: the active features of each token, and the texts where a feature is most active."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.trace.dictionaries.dictionary import Dictionary
from pellucid.trace.dictionaries.sparse_coder import ActiveFeatures, FeatureEncoder
from pellucid.trace.export import Axis, Exportable, LabelledArray, plotted, values_named
from pellucid.trace.trace import SequenceTrace
from pellucid.trace.traced_model import TracedModel, read
from pellucid.util.checks import items, whole
from pellucid.util.display import table

MOST_ACTIVE = 1 << 27  # maximum number of activations of a table
MOST_EXAMPLES = 1000
SHOWN = 24  # number of features of an exported table or a plot


class FeatureValue(NamedTuple):
    """The ``activation`` of a feature of a layer at a token: its ``position`` and its text, ``piece``."""

    position: int
    piece: str
    layer: int
    feature: int
    activation: float


@dataclass(frozen=True, eq=False, repr=False)
class FeatureTable(Exportable):
    """The active features of each token: a sparse table (token, layer, feature) with activations.

    ``positions``, ``layers``, ``features`` and ``activations`` have an entry for each activation that is not 0, in the
    order of positions, then layers and features. For each point that the dictionary reconstructs, ``values`` has its
    values (T, D), and ``errors`` the squared error of each token, (T,).
    """

    pieces: list[str]
    positions: NDArray[np.int64]
    layers: NDArray[np.int64]
    features: NDArray[np.int64]
    activations: NDArray[np.float32]
    errors: Mapping[str, NDArray[np.float64]]
    values: Mapping[str, NDArray[np.float32]]

    def __repr__(self) -> str:
        explained = ", ".join(f"{name} {share:.3f}" for name, share in list(self.explained().items())[:3])
        return (
            f"FeatureTable({len(self.pieces)} tokens, {len(self.activations) / max(len(self.pieces), 1):.1f} active "
            f"features each, explained variance {explained})"
        )

    def _repr_html_(self) -> str:
        rows = [
            (position, piece, ", ".join(f"{own.feature} ({own.activation:.3g})" for own in self.top(position, 5)))
            for position, piece in enumerate(self.pieces)
        ]
        return table(["position", "token", "features with the highest activations"], rows)

    def top(self, position: int | None = None, n: int = 10, *, layer: int | None = None) -> list[FeatureValue]:
        """The ``n`` highest activations, of all tokens or at one position (-1: the last).

        Raises:
            InvalidRequest: the position is out of range.
        """
        chosen = np.ones(len(self.activations), bool) if layer is None else self.layers == layer
        if position is not None:
            T = len(self.pieces)
            chosen &= self.positions == whole("position", position, -T, T - 1) % T
        at = np.flatnonzero(chosen)
        best = at[np.argsort(-self.activations[at], kind="stable")][: whole("n", n, 1, MOST_ACTIVE)]
        return [
            FeatureValue(
                int(self.positions[i]),
                self.pieces[int(self.positions[i])],
                int(self.layers[i]),
                int(self.features[i]),
                float(self.activations[i]),
            )
            for i in best
        ]

    def _values(self) -> list[LabelledArray]:
        return [self._highest(0)]

    def plot(self, name: str = "activation", *, ax: Any = None, first: int = 0) -> Any:
        """Draw the tokens from position ``first`` on: the first token often hides the others."""
        own = self._highest(whole("first", first, 0, len(self.pieces) - 1))
        return plotted(values_named([own], (name,))[0], ax)

    def _highest(self, first: int) -> LabelledArray:
        """The activations (F, T) of the features with the highest activations at the tokens from ``first`` on."""
        own = self.positions >= first
        known, places = np.unique(np.stack([self.layers, self.features])[:, own], axis=1, return_inverse=True)
        highest = np.zeros(known.shape[1], np.float32)
        np.maximum.at(highest, places.reshape(-1), self.activations[own])
        chosen = known[:, np.argsort(-highest, kind="stable")[:SHOWN]].T.tolist()
        several = len({layer for layer, _ in chosen}) > 1
        labels = [f"{layer}.{feature}" if several else str(feature) for layer, feature in chosen]
        rows = np.zeros((len(chosen), len(self.pieces) - first), np.float32)
        for row, (layer, feature) in zip(rows, chosen):
            row[:] = self.of(feature, layer=layer)[first:]
        tokens = range(first, len(self.pieces))
        return LabelledArray(
            "activation", rows, (Axis("feature", "F", labels), Axis("token", "T", tokens, self.pieces[first:]))
        )

    def of(self, feature: int, *, layer: int | None = None) -> NDArray[np.float32]:
        """The activation of a feature at each token, (T,)."""
        chosen = self.features == feature
        if layer is not None:
            chosen &= self.layers == layer
        found = np.zeros(len(self.pieces), np.float32)
        found[self.positions[chosen]] = self.activations[chosen]
        return found

    def explained(self, first: int = 0) -> dict[str, float]:
        """The explained variance of each reconstructed point, over the tokens from position ``first`` on.

        It is 1 - Σ |error|² / Σ |x - mean|². The first token of a text often has a norm a hundred times as large as
        the others, so that its variance hides theirs: compare with ``first=1``.

        Raises:
            InvalidRequest: there is no such position.
        """
        first, found = whole("first", first, 0, len(self.pieces) - 1), dict[str, float]()
        for name, error in self.errors.items():
            values = self.values[name][first:].astype(np.float64)
            variance = ((values - values.mean(0)) ** 2).sum()
            found[name] = 1 - float(error[first:].sum() / max(variance, 1e-30))
        return found


def features(model: TracedModel, of: Any, dictionary: Dictionary) -> FeatureTable:
    """The active features of a prompt, and the errors of their reconstruction.

    ``of`` is a prompt, or a sequence of a trace that has the points that the dictionary reads and writes.

    Raises:
        InvalidRequest: the trace lacks a point, or more than 2^27 activations are not 0.
    """
    coders = dictionary.coders
    points = [own.name for coder in coders.values() for own in (coder.reads, coder.writes[0])]
    sequence = read(model, of, points)
    T, active = len(sequence), dict[int, ActiveFeatures]()
    errors, values = dict[str, NDArray[np.float64]](), dict[str, NDArray[np.float32]]()
    for layer, coder in coders.items():
        x = _values(sequence, coder.reads.name)
        active[layer] = coder.active(x)
        if sum(len(own.rows) for own in active.values()) > MOST_ACTIVE:
            raise InvalidRequest(f"more than {MOST_ACTIVE:,} activations are not 0: give a shorter prompt")
        sums = coder.summed(active[layer], 0, T)
        for other, output in dictionary.others(coder):
            earlier = next((number for number, own in coders.items() if own is other), layer)
            sums += other.summed(active[earlier], output, T)
        name = coder.writes[0].name
        values[name] = _values(sequence, name)
        errors[name] = ((coder.reconstruction(sums, x) - values[name].astype(np.float64)) ** 2).sum(-1)
    layers = np.concatenate([np.full(len(own.rows), layer) for layer, own in active.items()])
    rows = np.concatenate([own.rows for own in active.values()])
    order = np.argsort(rows, kind="stable")
    return FeatureTable(
        sequence.pieces,
        rows[order],
        layers[order],
        np.concatenate([own.features for own in active.values()])[order],
        np.concatenate([own.activations for own in active.values()])[order],
        errors,
        values,
    )


class FeatureExample(NamedTuple):
    """A text with the activation of a feature at each token; the highest is at ``position``."""

    activation: float
    position: int
    pieces: list[str]
    activations: NDArray[np.float32]

    def context(self, before: int = 8, after: int = 3) -> str:
        """The text around the token with the highest activation, which is in brackets."""
        start, at = max(0, self.position - before), self.position
        left, right = "".join(self.pieces[start:at]), "".join(self.pieces[at + 1 : at + 1 + after])
        return f"{left}[{self.pieces[at]}]{right}"


def top_examples(
    model: TracedModel,
    texts: Iterable[Any],
    dictionary: Dictionary,
    feature: int,
    *,
    layer: int | None = None,
    n: int = 10,
    first: int = 0,
) -> list[FeatureExample]:
    """The ``n`` texts where a feature is most active from position ``first`` on, sorted by the highest activation.

    ``texts`` are prompts, or sequences of traces that have the point that the dictionary reads. Texts where the feature
    is not active are left out.

    Raises:
        InvalidRequest: there is no such feature or layer.
    """
    coder = dictionary.coder(layer)
    number = whole("feature", feature, 0, coder.features - 1)
    encoder, found = FeatureEncoder(coder, np.array([number])), list[FeatureExample]()
    most, first = whole("n", n, 1, MOST_EXAMPLES), whole("first", first, 0, 1 << 31)
    for text in items("texts", texts):
        sequence = read(model, text, [coder.reads.name])
        activations = encoder(_values(sequence, coder.reads.name))[:, 0]
        if len(activations) <= first:
            continue
        best = first + int(activations[first:].argmax())
        if activations[best] > 0:
            found.append(FeatureExample(float(activations[best]), best, sequence.pieces, activations))
            found = sorted(found, key=lambda one: -one.activation)[:most]
    return found


def _values(sequence: SequenceTrace, point: str) -> NDArray[np.float32]:
    """The values of a point as rows (T, D)."""
    values = np.asarray(sequence[point], np.float32)
    return values.reshape(len(values), -1)
