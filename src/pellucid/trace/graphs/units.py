"""The units of feed-forwards, and the sources of edges: values whose contributions to targets are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.backward.reverse_walk import Rows
from pellucid.trace.backward.tape import Tape, Version

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
        """A part of the units."""
        return Units(self.rows[chosen], self.numbers[chosen], self.activations[chosen])


class OpenedUnits(Protocol):
    """The units of a feed-forward in a run, in the order of tokens. Some may have an activation of 0."""

    @property
    def count(self) -> int:
        """The number of units."""

    def before(self, row: int) -> int:
        """The number of units at the tokens before a token."""

    def units(self, chosen: Numbers) -> Units:
        """Some of the units, in order."""

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
    def reads(self) -> Version:
        """The input of the feed-forward."""

    @property
    def writes(self) -> tuple[Version, ...]:
        """Its output first, then later outputs."""

    @property
    def recorded(self) -> tuple[Version, ...]:
        """The versions that a tape must record."""

    def label(self, number: int) -> str:
        """The name of a unit within its layer."""

    def open(self, tape: Tape) -> OpenedUnits:
        """The units in a run."""

    def skipped(self, gradient: Rows) -> Rows | None:
        """The gradient (n, D) of the input through a linear path from input to output beside the units."""

    def skip(self, tape: Tape) -> Rows | None:
        """The output of this path in a run, (rows, D)."""


def by_row(rows: Numbers) -> Iterator[tuple[int, slice]]:
    """The units of each token in sorted ``rows`` (n,): the token, and the slice of its units."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)]):
        yield int(rows[start]), slice(start, stop)


# The sources of edges: values whose contributions to targets are measured, each in some columns of the edges.


class EdgeSource(Protocol):
    """Values of one kind and layer."""

    @property
    def versions(self) -> tuple[Version, ...]:
        """The versions whose gradients it reads."""

    @property
    def count(self) -> int:
        """The number of nodes."""

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        """The nodes, and what they contribute through a version, for its gradients (N, rows, width): (N, n)."""


class RowVectors:
    """The vectors (rows, D) at each token of one or more versions, such as embeddings and errors."""

    def __init__(self, vectors: Mapping[Version, Rows]) -> None:
        self.versions = tuple(vectors)
        self._vectors = {version: np.ascontiguousarray(own, np.float32) for version, own in vectors.items()}

    @property
    def count(self) -> int:
        return len(self._vectors[self.versions[0]])

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        own = self._vectors[version][: gradient.shape[1]]
        return slice(0, len(own)), np.einsum("nrd,rd->nr", gradient[:, :, : own.shape[1]], own)


class UnitVectors:
    """The vectors (n, O, D) of units at the tokens ``rows``, in order, which write to O versions."""

    def __init__(self, versions: Sequence[Version], rows: Numbers, vectors: Rows) -> None:
        self.versions = tuple(versions)
        self._rows, self._vectors = rows, [np.ascontiguousarray(own) for own in vectors.swapaxes(0, 1)]

    @property
    def count(self) -> int:
        return len(self._rows)

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        vectors = self._vectors[self.versions.index(version)]
        count = int(np.searchsorted(self._rows, gradient.shape[1]))
        found = np.zeros((len(gradient), count), np.float32)
        for row, mine in by_row(self._rows[:count]):
            found[:, mine] = gradient[:, row, : vectors.shape[1]] @ vectors[mine].T
        return slice(0, count), found

    def subtract_from(self, version: Version, values: Rows) -> None:
        """Subtract what the units write to a version from its values (rows, D)."""
        vectors = self._vectors[self.versions.index(version)]
        for row, mine in by_row(self._rows):
            values[row, : vectors.shape[1]] -= vectors[mine].sum(0)


class HeadVectors:
    """The outputs of some heads at some tokens: (n,) rows and numbers of heads, in the order of rows.

    ``values`` (T, H, V) are the outputs of all heads. The gradient of a chosen head does not continue.
    """

    def __init__(self, version: Version, rows: Numbers, heads: Numbers, values: Rows) -> None:
        self.versions, self.rows, self.heads, self._values = (version,), rows, heads, values

    @property
    def count(self) -> int:
        return len(self.rows)

    def contributions(self, version: Version, gradient: Rows) -> tuple[slice, Rows]:
        count = int(np.searchsorted(self.rows, gradient.shape[1]))
        rows, heads = self.rows[:count], self.heads[:count]
        own = by_head(gradient, self._values.shape[1:])[:, rows, heads]
        return slice(0, count), np.einsum("njv,jv->nj", own, self._values[rows, heads])

    def continued(self, gradient: Rows) -> Rows:
        """The gradient without the chosen heads."""
        count = int(np.searchsorted(self.rows, gradient.shape[1]))
        found = gradient.copy()
        by_head(found, self._values.shape[1:])[:, self.rows[:count], self.heads[:count]] = 0
        return found


def by_head(gradient: Rows, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A view of gradients (N, rows, width) as (N, rows, H, V)."""
    H, V = shape
    return gradient[:, :, : H * V].reshape(*gradient.shape[:2], H, V)
