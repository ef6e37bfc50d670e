"""The rows of a column in all shards of a dataset, as one array that is read on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.trace.dataset.columns import TYPES, StoredColumn, widened


class RowArray:
    """A read-only array (rows, ...) over the shards of a dataset. Indexing returns NumPy arrays of the chosen rows.

    Takes a row number, a slice, a list or array of row numbers, or an array of booleans. Values stored as bfloat16 are
    returned as float32. ``np.asarray`` reads all rows.
    """

    def __init__(self, column: StoredColumn, starts: Sequence[int], shard: Callable[[int], NDArray[Any]]) -> None:
        self._column, self._shard = column, shard
        self._starts = np.asarray(starts, np.int64)
        """The first row of each shard, and the number of all rows."""

    def __repr__(self) -> str:
        return f"RowArray({self._column.name}, {self.shape} {self._column.dtype})"

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, ...)."""
        return (len(self), *self._column.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the arrays that indexing returns."""
        return np.dtype(np.float32) if self._column.dtype == "bfloat16" else TYPES[self._column.dtype]

    @property
    def stored_dtype(self) -> str:
        """The type on disk: "float32", "float16", "bfloat16" or "int32"."""
        return self._column.dtype

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        """The values of rows. Raises InvalidRequest for rows that the array does not have."""
        return widened(self.stored(rows), self._column.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("the rows are in several files: an array of all rows is a copy")
        return np.asarray(self[:], dtype)

    def stored(self, rows: Any) -> NDArray[Any]:
        """As indexing, but bfloat16 as its bits (uint16)."""
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                return self._between(start, max(start, stop))
            return self._rows(np.arange(start, stop, step))
        chosen = np.asarray(rows)
        if chosen.dtype == np.bool_:
            if chosen.shape != (len(self),):
                raise InvalidRequest(f"rows: {chosen.shape} booleans for {len(self):,} rows: give one for each row")
            chosen = np.flatnonzero(chosen)
        if chosen.size and (chosen.dtype.kind not in "iu" or chosen.ndim > 1):
            raise InvalidRequest(f"rows={brief(rows)}: must be a number, a slice, or a list of row numbers")
        chosen = chosen.astype(np.int64)
        if chosen.size and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"rows={brief(rows)}: there are {len(self):,} rows, numbered from 0")
        found = self._rows(np.where(chosen < 0, chosen + len(self), chosen).reshape(-1))
        one: NDArray[Any] = found[0] if chosen.ndim == 0 else found
        return one

    def _between(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``start`` to ``stop`` - 1: a view of the mapped file if they are in one shard."""
        first, last = (int(np.searchsorted(self._starts, row, "right")) - 1 for row in (start, max(start, stop - 1)))
        if start >= stop:
            return np.empty((0, *self._column.shape), TYPES[self._column.dtype])
        parts = [
            self._shard(number)[
                max(start - self._starts[number], 0) : min(stop, self._starts[number + 1]) - self._starts[number]
            ]
            for number in range(first, last + 1)
            if self._starts[number] < self._starts[number + 1]
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows in the given order. Each shard is read in ascending order."""
        found = np.empty((len(rows), *self._column.shape), TYPES[self._column.dtype])
        shards = np.searchsorted(self._starts, rows, "right") - 1
        order = np.argsort(rows, kind="stable")
        for number in np.unique(shards):
            own = order[shards[order] == number]
            found[own] = self._shard(int(number))[rows[own] - self._starts[number]]
        return found
