"""Active features of transcoders as the units of an attribution graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pellucid.errors import InvalidRequest
from pellucid.trace.backward.product_values import Rows
from pellucid.trace.backward.tape import Tape, Version, Versions, version_of
from pellucid.trace.dictionaries.sparse_coder import SparseCoder
from pellucid.trace.graphs.units import Numbers, Units, by_row

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
        """As in ``LayerUnits``."""
        return (self.reads,)

    def label(self, number: int) -> str:
        """As in ``LayerUnits``."""
        return str(number)

    def open(self, tape: Tape) -> OpenedFeatures:
        """As in ``LayerUnits``."""
        active = self._coder.active(self._input(tape))
        return OpenedFeatures(
            self._coder, self.writes, Units(active.rows, active.features, active.activations)
        )

    def _input(self, tape: Tape) -> Rows:
        return np.ascontiguousarray(tape.value(self.reads)[:, : self._coder.width])

    def skipped(self, gradient: Rows) -> Rows | None:
        """As in ``LayerUnits``."""
        matrix = self._coder.skip_matrix
        return None if matrix is None else gradient[:, : len(matrix)] @ matrix

    def skip(self, tape: Tape) -> Rows | None:
        """As in ``LayerUnits``."""
        matrix = self._coder.skip_matrix
        return None if matrix is None else self._input(tape) @ matrix.T


class OpenedFeatures:
    """The active features of a transcoder in a run, as ``Units``."""

    def __init__(self, coder: SparseCoder, writes: tuple[Version, ...], active: Units) -> None:
        self._coder, self._writes, self._active = coder, writes, active

    @property
    def count(self) -> int:
        """As in ``OpenedUnits``."""
        return len(self._active.rows)

    def before(self, row: int) -> int:
        """As in ``OpenedUnits``."""
        return int(np.searchsorted(self._active.rows, row))

    def units(self, chosen: Numbers) -> Units:
        """As in ``OpenedUnits``."""
        active = self._active
        return Units(active.rows[chosen], active.numbers[chosen], active.activations[chosen])

    def vectors(self, units: Units) -> Rows:
        """As in ``OpenedUnits``."""
        return self._coder.vectors(units.numbers) * units.activations[:, None, None]

    def directions(self, units: Units) -> Rows:
        """As in ``OpenedUnits``."""
        return self._coder.directions(units.numbers)

    def effects(self, version: Version, gradient: Rows) -> Rows:
        """As in ``OpenedUnits``."""
        output, found = self._writes.index(version), np.zeros((len(gradient), self.count), np.float32)
        for chosen in self._chunks():
            part = self.units(chosen)
            vectors = self.vectors(part)[:, output]
            for row, mine in by_row(part.rows):
                found[:, chosen[mine]] = gradient[:, row, : vectors.shape[1]] @ vectors[mine].T
        return found

    def passed(self, effects: Rows, rows: int) -> Rows:
        """As in ``OpenedUnits``."""
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
