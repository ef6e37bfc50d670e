"""The columns of an activation dataset: the points, the token of each row, and all rows of a column as an array."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.kernels.matmul.floats import bf16_bits
from pellucid.plan.points import Point
from pellucid.trace.positions import Positions
from pellucid.trace.selection import Selection, by_name, select

TEXTS, POSITIONS, TOKEN_IDS = "texts", "positions", "token_ids"
"""Columns of every dataset: the number of a row's text, the position in its text, and the id of its token.

If the rows are texts, there is only the column of the texts.
"""
TYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),  # the bits of bfloat16, which NumPy does not have
    "int32": np.dtype("<i4"),
}
DTYPES = ("float32", "float16", "bfloat16")  # the types of stored values
SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int32": "I32"}
LARGEST_FLOAT16 = 65504.0


class StoredColumn(Struct, frozen=True):
    """A column: its ``name``, the ``shape`` of a row's value (() for a number), and a ``dtype`` of ``TYPES``."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * TYPES[self.dtype].itemsize

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values (n, ...) in the column's type, contiguous.

        Raises:
            InvalidRequest: a value is too large for float16.
        """
        if self.dtype == "bfloat16":
            return bf16_bits(values)
        if self.dtype == "float16":
            largest = float(np.abs(values).max(initial=0))
            if LARGEST_FLOAT16 < largest < math.inf:
                raise InvalidRequest(
                    f"dtype='float16': {self.name} has the value {largest:,.0f}, and float16 ends at "
                    f"{LARGEST_FLOAT16:,.0f}: use bfloat16 or float32"
                )
        return np.ascontiguousarray(values, TYPES[self.dtype])


def widened(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Stored values as NumPy can compute with them: bfloat16 becomes float32."""
    if dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


class RecordedColumns(Struct, frozen=True):
    """The parts of points that a dataset records, and its columns.

    ``rows`` is "tokens", or "texts" if the points have one value for each text. The rows of a text are its ``tokens``.
    """

    selected: tuple[Selection, ...]
    columns: tuple[StoredColumn, ...]
    rows: str
    tokens: Positions

    @property
    def row_bytes(self) -> int:
        return sum(column.row_bytes for column in self.columns)

    def described(self) -> dict[str, dict[str, object]]:
        points = dict[str, dict[str, object]]()
        stored = {column.name: column for column in self.columns}
        for part in self.selected:
            column, own = stored[part.name], dict[str, object]()
            if part.point.heads and not part.has_all_heads:
                own["heads"] = list(part.heads)
            if part.dims is not None:
                own["dims"] = list(part.dims)
            if part.tokens.text:
                own["tokens"] = part.tokens.text
            points[part.name] = {
                "shape": list(column.shape),
                "dtype": column.dtype,
                "about": part.point.about,
                "unit": part.point.unit,
                **own,
            }
        return points


def recorded_columns(points: Mapping[str, Point], names: Sequence[str], dtype: str) -> RecordedColumns:
    """The columns of a dataset with the selected parts of points, whose values are stored as ``dtype``. Raises
    InvalidRequest if a name selects nothing, a point has no value for each token or text, or the points have different
    rows.
    """
    if not names:
        raise InvalidRequest("points: none is given: name at least one, such as blocks.*.residual")
    selected = tuple(by_name(select(points, names)).values())
    for part in selected:
        _refuse(part.point)
    first = selected[0]
    per_text = first.point.rows == "sequences"
    for part in selected:
        if (part.point.rows == "sequences") is not per_text:
            raise InvalidRequest(
                f"points: {first.name} and {part.name} have different rows, one for each text and one for each token: "
                "record them in two datasets"
            )
        if part.tokens != first.tokens:
            raise InvalidRequest(
                f"points: {first.name} and {part.name} select different tokens: give all points the same tokens, or "
                "record two datasets"
            )
    about = (TEXTS,) if per_text else (TEXTS, POSITIONS, TOKEN_IDS)
    columns = [StoredColumn(name, (), "int32") for name in about]
    columns += [_column(part, dtype) for part in selected]
    # The widest types first, so that each column is aligned in the file.
    columns.sort(key=lambda column: -TYPES[column.dtype].itemsize)
    return RecordedColumns(selected, tuple(columns), "texts" if per_text else "tokens", first.tokens)


def _refuse(point: Point) -> None:
    if point.of_source:
        raise InvalidRequest(
            f"point={brief(point.name)}: datasets of encoder-decoders are not implemented: record a trace"
        )
    if point.kind not in ("value", "probabilities") or point.rows == "once":
        raise InvalidRequest(
            f"point={brief(point.name)}: has no value of one size for each token ({point.kind}): record a trace of it"
        )


def _column(part: Selection, dtype: str) -> StoredColumn:
    point = part.point
    size = point.view.count if part.dims is None else len(part.dims)
    shape = (len(part.heads), size) if point.heads else (size,)
    return StoredColumn(part.name, shape, dtype if point.dtype == "float32" else point.dtype)


# The rows of a column in all shards of a dataset, as one array that is read on demand.


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
