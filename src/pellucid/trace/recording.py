"""The recordings and edits of a request: parts of points as taps, and edits with their columns and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.errors.messages import brief
from pellucid.kernels.attention.tiles import SPAN
from pellucid.plan.points import RowKind
from pellucid.plan.watched import Edit, PatternEdit, PatternTap, StateTap, Tap, Watch
from pellucid.runtime.batch import EditEntry, PatternEntry
from pellucid.trace.edits import ColumnRun, EditOf, columns_of, pattern_rows, rows_of
from pellucid.trace.reach import reach_of
from pellucid.trace.selection import Selected

MOST_RUNS = 4096
"""Maximum number of runs of columns of an edit. Each run is an operation of the step."""


class PlacedPart(Struct, frozen=True):
    """A selected part and its ``places``: the first column of each run of heads in a block of values.

    A pattern has the index of its block of pattern taps instead, a state the index of its state tap.
    """

    selected: Selected
    places: tuple[int, ...]


class BoundEdit(Struct, frozen=True):
    """A run of an edit's columns: the selected part, the edit, the values for this run, and the columns.

    If ``alike`` is True, a single row of values is for all positions.
    """

    selected: Selected
    edit: EditOf
    values: NDArray[np.float32] | None
    alike: bool
    columns: ColumnRun


class BoundPatternEdit(Struct, frozen=True):
    """A run of heads of a pattern edit: ``values`` (heads, rows, keys) for the positions ``tokens`` in order.

    A single row is for all positions. None adds nothing. The run has ``count`` heads from head ``first`` on.
    """

    factor: float
    values: NDArray[np.float32] | None
    tokens: range
    operation: int
    first: int
    count: int

    def entries(self, start: int, stop: int) -> list[PatternEntry]:
        """The entries of the positions from ``start`` to ``stop`` - 1."""
        found = []
        for position in range(max(start, self.tokens.start), min(stop, self.tokens.stop)):
            for head in range(self.count):
                values = self._row(head, position, stop)
                if values is not None or self.values is None:
                    found.append(PatternEntry(position, head, self.factor, values))
        return found

    def _row(self, head: int, position: int, tokens: int) -> NDArray[np.float32] | None:
        """The values to add to a head's row at a position, padded to a multiple of ``SPAN``; None if there are none.

        ``tokens`` is the number of keys.
        """
        if self.values is None:
            return None
        at = 0 if self.values.shape[1] == 1 else position - self.tokens.start
        if at >= self.values.shape[1]:
            return None
        made = np.zeros(-(-tokens // SPAN) * SPAN, np.float32)
        given = self.values[head, at, :tokens]
        made[: len(given)] = given
        return made


class Recording:
    """The parts to record (``selected``), and the ``edits``, each with the part that it changes.

    Raises:
        InvalidRequest: an edit's values do not fit its part, or its point cannot be changed (scores, say).
    """

    def __init__(self, selected: Sequence[Selected], edits: Sequence[tuple[Selected, EditOf]]) -> None:
        self.selected = tuple(selected)
        self._columns: dict[RowKind, int] = {}
        taps, patterns, states = list[Tap](), list[PatternTap](), list[StateTap]()
        own = [one for one in dict.fromkeys(selected) if one.point.kind != "output"]
        self.placed = {one: self._place(one, taps, patterns, states) for one in own}
        self.watches_chain = len(own) < len(set(selected))
        for one, edit in edits:
            if one.point.kind == "output":
                raise InvalidRequest(
                    f"edit of {brief(edit.where)}: the chain is changed by its options, or by the logits"
                )
            if one.point.kind == "state":
                raise InvalidRequest(
                    f"edit of {brief(edit.where)}: a state cannot be changed; change what goes into it, or comes out"
                )
            if one.point.kind == "probabilities":
                raise InvalidRequest(f"edit of {brief(edit.where)}: change the logits (project.logits)")
        self.reaches = [reach_of(one, edit) for one, edit in edits if one.point.kind in ("value", "pattern")]
        self.edits = [
            bound for one, edit in edits if one.point.kind == "value" for bound in _bound(one, edit)
        ]
        self.pattern_edits = [
            bound for one, edit in edits if one.point.kind != "value" for bound in _bound_pattern(one, edit)
        ]
        _refuse_twice(self.pattern_edits)
        changes = tuple(
            Edit(
                one.selected.point.operation,
                one.columns.first,
                one.columns.count,
                one.selected.point.write,
                one.columns.part,
                one.edit.function is not None,
            )
            for one in self.edits
        )
        pattern_changes = tuple(
            PatternEdit(one.operation, one.first, one.count) for one in self.pattern_edits
        )
        self.watch = Watch(tuple(taps), tuple(patterns), changes, pattern_changes, tuple(states))
        self.tokens = _spanned(own)
        needs_all = [one for one in own if one.point.rows == "outputs"]
        self.first_output = min((one.tokens.start for one in needs_all), default=None)

    def _place(
        self, selected: Selected, taps: list[Tap], patterns: list[PatternTap], states: list[StateTap]
    ) -> PlacedPart:
        point, places = selected.point, list[int]()
        if point.kind == "state":
            states.append(StateTap(point.write, point.part, point.view.count))
            return PlacedPart(selected, (len(states) - 1,))
        if point.kind in ("pattern", "scores"):
            block = patterns[-1].block + 1 if patterns else 0
            raw = point.kind == "scores"
            patterns += [PatternTap(point.operation, *run, raw, block) for run in selected.runs()]
            return PlacedPart(selected, (block,))
        for head, count in selected.runs():
            column = self._columns.get(point.rows, 0)
            places.append(column)
            apart = point.view.stride
            if point.view.places:
                taps += [
                    Tap(point.operation, 0, apart, point.write, part) for part in range(head, head + count)
                ]
            else:
                taps.append(Tap(point.operation, head * apart, count * apart, point.write))
            self._columns[point.rows] = column + count * apart
        return PlacedPart(selected, tuple(places))

    def bytes_for(self, tokens: int) -> int:
        """The number of bytes that a sequence of ``tokens`` tokens takes."""
        rows = len(range(max(self.tokens.start, 0), min(self.tokens.stop, tokens)))
        heads = sum(one.count for one in self.watch.patterns)
        each = 4 * sum(self._columns.values())
        each += 4 * sum(one.size for one in self.watch.states)
        # A row of a pattern has a weight for each token of its step's context: for all tokens, if there is one step.
        return rows * (each + 4 * heads * tokens)


def _spanned(selected: Sequence[Selected]) -> range:
    """The range from the first to the last position at which any of the parts is recorded."""
    if not selected:
        return range(0)
    return range(min(one.tokens.start for one in selected), max(one.tokens.stop for one in selected))


def _bound_pattern(selected: Selected, edit: EditOf) -> list[BoundPatternEdit]:
    where = f"edit of {brief(edit.where)}"
    if selected.point.kind == "scores":
        raise InvalidRequest(
            f"{where}: scores cannot be changed; change the pattern, or the queries (q_rotary)"
        )
    if edit.function is not None:
        raise InvalidRequest(f"{where}: a function cannot change a pattern; give it as values")
    values = None if edit.values is None else pattern_rows(selected, edit)
    made, place = [], 0
    for first, count in selected.runs():
        own = None if values is None else values[place : place + count]
        made.append(
            BoundPatternEdit(edit.factor, own, selected.tokens, selected.point.operation, first, count)
        )
        place += count
    return made


def _refuse_twice(edits: Sequence[BoundPatternEdit]) -> None:
    """Refuse two edits of the same head's pattern: their effects would not combine."""
    seen = set[tuple[int, int]]()
    for one in edits:
        heads = {(one.operation, head) for head in range(one.first, one.first + one.count)}
        if heads & seen:
            raise InvalidRequest("two edits change the pattern of one head: make one of them")
        seen |= heads


def _bound(selected: Selected, edit: EditOf) -> list[BoundEdit]:
    if selected.point.dtype != "float32":
        raise InvalidRequest(
            f"edit of {brief(edit.where)}: these are numbers of experts; change the router's scores"
        )
    values, alike = (None, True) if edit.values is None else rows_of(selected, edit, edit.values)
    runs = columns_of(selected)
    if len(runs) > MOST_RUNS:
        raise InvalidRequest(
            f"edit of {brief(edit.where)}: {len(runs):,} runs of columns; the limit is {MOST_RUNS:,}"
        )
    made, place = list[BoundEdit](), 0
    if edit.function is not None and len(runs) > 1:
        raise InvalidRequest(
            f"edit of {brief(edit.where)}: a function changes neighbouring columns; select all, or those of one head"
        )
    for run in runs:
        own = None if values is None else np.ascontiguousarray(values[:, place : place + run.count])
        made.append(BoundEdit(selected, edit, own, alike, run))
        place += run.count
    return made


def part_of(placed: PlacedPart, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The selected part of a block's ``rows``, (n, heads, values)."""
    made, dims = _heads_of(placed, rows), placed.selected.dims
    if placed.selected.point.kind == "probabilities":
        raised = np.exp(made - made.max(-1, keepdims=True))
        made = raised / raised.sum(-1, keepdims=True)
    return made if dims is None else made[:, :, list(dims)]


def _heads_of(placed: PlacedPart, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    view, found = placed.selected.point.view, []
    for column, (_, count) in zip(placed.places, placed.selected.runs()):
        run = rows[:, column : column + count * view.stride].reshape(len(rows), count, view.stride)
        found.append(run[:, :, : view.count])
    return np.concatenate(found, 1) if len(found) > 1 else found[0]


def values_of(
    recording: Recording, rows: str, positions: range, block: NDArray[np.float32]
) -> Iterator[tuple[Selected, range, NDArray[Any]]]:
    """Yield the selected parts of a step's block of values, each with its positions and its values, (n, ...)."""
    for selected, placed in recording.placed.items():
        point, tokens = selected.point, selected.tokens
        if point.kind not in ("value", "probabilities") or point.rows != rows:
            continue
        low, high = max(positions.start, tokens.start), min(positions.stop, tokens.stop)
        if low < high:
            made = part_of(placed, block[low - positions.start : high - positions.start])
            whole = made.view(np.int32) if point.dtype == "int32" else made
            yield selected, range(low, high), whole if point.heads else whole.reshape(high - low, -1)


def patterns_of(
    recording: Recording, block: int, positions: range, rows: NDArray[np.float32]
) -> Iterator[tuple[Selected, range, NDArray[np.float32]]]:
    """Yield the selected patterns in a step's rows of a ``block`` of pattern taps, each with its positions.

    The values of a pattern are (n, heads, tokens).
    """
    for selected, placed in recording.placed.items():
        if selected.point.kind not in ("pattern", "scores") or placed.places != (block,):
            continue
        low = max(positions.start, selected.tokens.start)
        high = min(positions.stop, selected.tokens.stop)
        if low < high:
            yield selected, range(low, high), rows[low - positions.start : high - positions.start]


def entries_of(
    one: BoundEdit, values: NDArray[np.float32] | None, alike: bool, factor: float, start: int, stop: int
) -> list[EditEntry]:
    """The entries of the positions from ``start`` to ``stop`` - 1 that are selected and have values."""
    tokens = one.selected.tokens
    if values is None:
        return [EditEntry(p, factor, None) for p in range(max(start, tokens.start), min(stop, tokens.stop))]
    last = tokens.stop if alike else min(tokens.stop, tokens.start + len(values))
    return [
        EditEntry(p, factor, values[0 if alike else p - tokens.start])
        for p in range(max(start, tokens.start), min(stop, last))
    ]
