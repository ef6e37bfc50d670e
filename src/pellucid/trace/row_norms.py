"""Norms of the rows of recorded values, which a stream sends in place of the values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.instrumentation import RecordedPart, part_of

TOGETHER = 1 << 20
"""Values that are squared together: float64 copies of more values would not fit into a CPU's caches."""


def row_norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """The Euclidean norm of each row of values (n, ...): (n,) float32, computed in float64."""
    return _norms(values.reshape(len(values), -1))


def _norms(values: NDArray[Any]) -> NDArray[np.float32]:
    """The norms of the last axis."""
    squares = values.astype(np.float64)
    np.multiply(squares, squares, out=squares)
    norms: NDArray[np.float32] = np.sqrt(squares.sum(-1)).astype(np.float32)
    return norms


class BlockNorms:
    """Reduces a step's blocks of values of one kind of rows to the values of some parts, and the norms of ``parts``.

    The columns of the norms' ``parts`` follow all other columns, which begin at column ``first``.
    """

    def __init__(self, parts: Sequence[RecordedPart]) -> None:
        self.parts = list(parts)
        self.selected = tuple(part.selected for part in parts)
        starts, ends = zip(*((part.tokens.start, part.tokens.stop) for part in self.selected))
        self.tokens = range(max(starts), min(ends))
        """The positions that all parts have."""
        self.first = min(place for part in self.parts for place in part.places)
        self._runs: list[
            tuple[int, int, int]
        ] = []  # of neighbouring parts: first column, number of parts, width
        self._others: list[tuple[int, RecordedPart]] = []
        for number, part in enumerate(self.parts):
            column, width = part.places[0], _width(part)
            if not width:
                self._others.append((number, part))
            elif self._runs and self._follows(number, column, width):
                first, count, _ = self._runs[-1]
                self._runs[-1] = (first, count + 1, width)
            else:
                self._runs.append((column, 1, width))
        self._order = np.argsort([*_numbers(self.parts), *(number for number, _ in self._others)])

    def _follows(self, number: int, column: int, width: int) -> bool:
        first, count, last = self._runs[-1]
        return bool(_width(self.parts[number - 1])) and (first + count * last, last) == (column, width)

    def of(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """The norms (n, parts) of a block of values (n, columns)."""
        norms = np.empty((len(block), len(self.parts)), np.float32)
        step = max(1, TOGETHER // block.shape[1])
        for first in range(0, len(block), step):
            rows = block[first : first + step]
            found = [
                _norms(rows[:, column : column + count * width].reshape(len(rows), count, width))
                for column, count, width in self._runs
            ]
            found += [
                row_norms(part_of(part, rows).view(part.selected.point.dtype))[:, None]
                for _, part in self._others
            ]
            norms[first : first + step] = np.concatenate(found, 1)[:, self._order]
        return norms


def _numbers(parts: Sequence[RecordedPart]) -> list[int]:
    return [number for number, part in enumerate(parts) if _width(part)]


def _width(part: RecordedPart) -> int:
    """The number of columns of a part if they are neighbours and all its values; otherwise 0."""
    selected, view = part.selected, part.selected.point.view
    whole = selected.dims is None and len(part.places) == 1 and view.stride == view.count
    plain = selected.point.kind == "value" and selected.point.dtype == "float32"
    return len(selected.heads) * view.count if whole and plain else 0


def by_rows(parts: Sequence[RecordedPart]) -> dict[str | int, BlockNorms]:
    """The norms of parts by the kind of their rows."""
    kinds: dict[str | int, list[RecordedPart]] = {}
    for part in parts:
        kinds.setdefault(part.selected.point.rows, []).append(part)
    return {rows: BlockNorms(own) for rows, own in kinds.items()}
