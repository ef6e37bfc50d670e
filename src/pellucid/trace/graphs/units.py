"""The units of feed-forwards: neurons of the model, and features of transcoders.

A unit has an activation at a token. It reads the input of its feed-forward along a *direction*, and writes its
activation times a *vector* to the output of its feed-forward (a feature of a cross-layer transcoder also to later
ones).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.backward.product_values import Rows
from pellucid.trace.backward.tape import Tape, Version

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
        ...

    def before(self, row: int) -> int:
        """The number of units at the tokens before a token."""
        ...

    def units(self, chosen: Numbers) -> Units:
        """Some of the units, in order."""
        ...

    def vectors(self, units: Units) -> Rows:
        """The addition of each unit to each output, (n, O, D)."""
        ...

    def directions(self, units: Units) -> Rows:
        """The directions (n, D): times the input, and plus biases, they give the activations."""
        ...

    def effects(self, version: Version, gradient: Rows) -> Rows:
        """The effects (N, count) of all units through an output, for its gradients (N, rows, D)."""
        ...

    def passed(self, effects: Rows, rows: int) -> Rows:
        """The gradients (N, rows, D) of the input, for the effects (N, count) of all units."""
        ...


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

    def label(self, number: int) -> str:
        """The name of a unit within its layer."""
        ...

    def open(self, tape: Tape) -> OpenedUnits:
        """The units in a run."""
        ...

    def skipped(self, gradient: Rows) -> Rows | None:
        """The gradient (n, D) of the input through a linear path from input to output beside the units."""
        ...

    def skip(self, tape: Tape) -> Rows | None:
        """The output of this path in a run, (rows, D)."""
        ...


def by_row(rows: Numbers) -> Iterator[tuple[int, slice]]:
    """The units of each token in sorted ``rows`` (n,): the token, and the slice of its units."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(rows)]):
        yield int(rows[start]), slice(start, stop)
