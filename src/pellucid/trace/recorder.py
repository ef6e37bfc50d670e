"""Records a sequence: the blocks of values that its steps hand over, and the arrays that are made of them when asked.

``Recording`` says what is recorded and changed, for any number of sequences; ``SequenceProbe`` is that of one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, PellucidError
from pellucid.errors.messages import brief, reason
from pellucid.kernels.attention.tiles import SPAN
from pellucid.plan.plan import RowKind
from pellucid.plan.watched import Edit, PatternEdit, PatternTap, Tap, Watch
from pellucid.runtime.batch import EditEntry, PatternEntry
from pellucid.trace.edits import EditOf, columns_of, pattern_rows, rows_of, shape_of
from pellucid.trace.selection import Selected

MOST_RUNS = 4096
"""Runs of columns of one edit: each is an operation of the step."""


@dataclass(frozen=True)
class _Placed:
    """Where a selected part is in the blocks: of each run of heads, the column of its values or its pattern."""

    selected: Selected
    places: tuple[int, ...]


@dataclass(frozen=True)
class _BoundEdit:
    """A run of an edit's columns: which selected part and edit it is of, and its values' columns there."""

    selected: Selected
    edit: EditOf
    values: NDArray[np.float32] | None
    alike: bool
    first: int
    count: int


@dataclass(frozen=True)
class _BoundPatternEdit:
    """A run of heads of a pattern's edit: ``values`` (heads, rows, keys) for the positions of ``tokens`` in order.

    One row is for all positions alike, None for nothing that is added. ``first`` is the run's first head.
    """

    factor: float
    values: NDArray[np.float32] | None
    tokens: range
    operation: int
    first: int
    count: int

    def entries(self, start: int, stop: int) -> list[PatternEntry]:
        """The entries of the positions from start to stop - 1."""
        found = []
        for position in range(max(start, self.tokens.start), min(stop, self.tokens.stop)):
            for head in range(self.count):
                values = self._row(head, position, stop)
                if values is not None or self.values is None:
                    found.append(PatternEntry(position, head, self.factor, values))
        return found

    def _row(self, head: int, position: int, tokens: int) -> NDArray[np.float32] | None:
        """What is added to a head's row of a position, for so many tokens; None if nothing is."""
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
    """What is recorded (``selected``) and changed (``edits``, each with the part that it changes).

    Raises:
        InvalidRequest: an edit's values do not fit its part, or scores are to be changed.
    """

    def __init__(self, selected: Sequence[Selected], edits: Sequence[tuple[Selected, EditOf]]) -> None:
        self.selected = tuple(selected)
        self._columns: dict[RowKind, int] = {}
        taps, patterns = list[Tap](), list[PatternTap]()
        self.placed = {one: self._place(one, taps, patterns) for one in dict.fromkeys(selected)}
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
                one.first,
                one.count,
                one.selected.point.write,
                one.edit.function is not None,
            )
            for one in self.edits
        )
        pattern_changes = tuple(
            PatternEdit(one.operation, one.first, one.count) for one in self.pattern_edits
        )
        self.watch = Watch(tuple(taps), tuple(patterns), changes, pattern_changes)
        self.tokens = _spanned(selected)
        needs_all = [one for one in selected if one.point.rows == "outputs"]
        self.first_output = min((one.tokens.start for one in needs_all), default=None)

    def _place(self, selected: Selected, taps: list[Tap], patterns: list[PatternTap]) -> _Placed:
        point, places = selected.point, list[int]()
        for head, count in selected.runs():
            if point.kind != "value":
                places.append(len(patterns))
                patterns.append(PatternTap(point.operation, head, count, point.kind == "scores"))
                continue
            column = self._columns.get(point.rows, 0)
            places.append(column)
            columns = count * point.view.apart
            taps.append(Tap(point.operation, head * point.view.apart, columns, point.write))
            self._columns[point.rows] = column + columns
        return _Placed(selected, tuple(places))

    def bytes_for(self, tokens: int) -> int:
        """Bytes that a sequence of so many tokens takes."""
        rows = len(range(max(self.tokens.start, 0), min(self.tokens.stop, tokens)))
        heads = sum(one.count for one in self.watch.patterns)
        each = 4 * sum(self._columns.values())
        first = min(self.tokens.start, tokens)
        return rows * each + 4 * heads * rows * (first + tokens) // 2


def _spanned(selected: Sequence[Selected]) -> range:
    """The positions that any of the parts is recorded at, and those between."""
    if not selected:
        return range(0)
    return range(min(one.tokens.start for one in selected), max(one.tokens.stop for one in selected))


def _bound_pattern(selected: Selected, edit: EditOf) -> list[_BoundPatternEdit]:
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
            _BoundPatternEdit(edit.factor, own, selected.tokens, selected.point.operation, first, count)
        )
        place += count
    return made


def _refuse_twice(edits: Sequence[_BoundPatternEdit]) -> None:
    """Refuse edits of one head's pattern that would not know of each other."""
    seen = set[tuple[int, int]]()
    for one in edits:
        heads = {(one.operation, head) for head in range(one.first, one.first + one.count)}
        if heads & seen:
            raise InvalidRequest("two edits change the pattern of one head: make one of them")
        seen |= heads


def _bound(selected: Selected, edit: EditOf) -> list[_BoundEdit]:
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
    made, place = list[_BoundEdit](), 0
    if edit.function is not None and len(runs) > 1:
        raise InvalidRequest(
            f"edit of {brief(edit.where)}: a function changes neighbouring columns; select all, or those of one head"
        )
    for first, count in runs:
        own = None if values is None else np.ascontiguousarray(values[:, place : place + count])
        made.append(_BoundEdit(selected, edit, own, alike, first, count))
        place += count
    return made


class SequenceProbe:
    """Records one sequence and changes its values. ``took`` is told the bytes of each block, and may refuse it.

    ``error`` is what an edit's function has raised; ``tokens`` returns the tokens that the sequence has read.
    """

    def __init__(self, recording: Recording, took: Callable[[int], bool]) -> None:
        self.recording, self._took = recording, took
        self.error: BaseException | None = None
        self.dropped = 0
        self.tokens: Callable[[], Sequence[int]] = tuple
        self._blocks: dict[str, list[tuple[range, NDArray[np.float32]]]] = {}
        self._patterns: dict[int, list[tuple[range, NDArray[np.float32]]]] = {}

    @property
    def watch(self) -> Watch:
        """As in ``Probe``."""
        return self.recording.watch

    @property
    def private(self) -> bool:
        """As in ``Probe``."""
        return bool(self.recording.edits or self.recording.pattern_edits)

    @property
    def first_recorded(self) -> int | None:
        """As in ``Probe``."""
        return self.recording.tokens.start if self.recording.selected else None

    def follow(self, other: SequenceProbe) -> None:
        """The sequence goes on after the tokens that ``other`` has recorded."""
        self._blocks = {rows: list(blocks) for rows, blocks in other._blocks.items()}
        self._patterns = {number: list(blocks) for number, blocks in other._patterns.items()}

    def positions(self, start: int, stop: int) -> range:
        """As in ``Probe``."""
        tokens = self.recording.tokens
        low = min(max(start, tokens.start), stop)
        return range(low, max(low, min(stop, tokens.stop)))

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        if self._room(values.nbytes):
            self._blocks.setdefault(rows, []).append((positions, values))

    def take_pattern(self, number: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Probe``. What edits make of the pattern is recorded."""
        if self._room(rows.nbytes):
            self._change(self.recording.watch.patterns[number], positions, rows)
            self._patterns.setdefault(number, []).append((positions, rows))

    def _change(self, tap: PatternTap, positions: range, rows: NDArray[np.float32]) -> None:
        for one in self.recording.pattern_edits:
            if tap.raw or one.operation != tap.operation:
                continue
            for head in range(max(one.first, tap.first), min(one.first + one.count, tap.first + tap.count)):
                for entry in one.entries(positions.start, positions.stop):
                    if entry.head == head - one.first:
                        row = rows[entry.position - positions.start, head - tap.first]
                        seen = row > 0
                        row *= np.float32(entry.factor)
                        if entry.values is not None:
                            row[seen] += entry.values[: len(row)][seen]

    def _room(self, nbytes: int) -> bool:
        if self._took(nbytes):
            return True
        self.dropped += 1
        return False

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        """As in ``Probe``."""
        one = self.recording.edits[number]
        return _entries(one, one.values, one.alike, one.edit.factor, start, stop)

    def pattern_entries(self, number: int, start: int, stop: int) -> Sequence[PatternEntry]:
        """As in ``Probe``."""
        return self.recording.pattern_edits[number].entries(start, stop)

    def changed(self, number: int, start: int, values: NDArray[np.float32]) -> Sequence[EditEntry]:
        """As in ``Probe``. An error of the function is kept for the sequence's task, and changes nothing."""
        one = self.recording.edits[number]
        tokens = one.selected.tokens
        low, high = max(start, tokens.start), min(start + len(values), tokens.stop)
        if low >= high or self.error is not None or one.edit.function is None:
            return []
        part = values[low - start : high - start].reshape(high - low, *shape_of(one.selected))
        try:
            given = one.edit.function(part)
            if given is None:
                return []
            made, alike = rows_of(one.selected, one.edit, given)
            if not alike and len(made) != len(part):
                raise InvalidRequest(
                    f"edit of {brief(one.edit.where)}: the function returns {len(made)} rows for {len(part)}"
                )
        except PellucidError as error:
            self.error = error
            return []
        except Exception as error:
            self.error = InvalidRequest(
                f"edit of {brief(one.edit.where)}: the function fails: {reason(error)}"
            )
            self.error.__cause__ = error
            return []
        return [EditEntry(low + i, 0.0, made[0 if alike else i]) for i in range(high - low)]

    @property
    def count(self) -> int:
        """How many of its tokens the sequence has read."""
        return len(self.tokens())

    def array(self, selected: Selected) -> NDArray[Any]:
        """The values of a selected part: (T, ...) from the first selected position on; NaN where none is recorded.

        Patterns and scores are (heads, T, T'), from query to key.
        """
        placed = self.recording.placed[selected]
        tokens = range(min(selected.tokens.start, self.count), min(selected.tokens.stop, self.count))
        if selected.point.rows == "sequences":
            tokens = range(1)
        if selected.point.kind != "value":
            return self._pattern(placed, tokens)
        parts, dims = selected.point.view, selected.dims
        made = np.full((len(tokens), len(selected.heads), parts.count), np.nan, np.float32)
        for positions, block in self._blocks.get(selected.point.rows, ()):
            low, high = max(positions.start, tokens.start), min(positions.stop, tokens.stop)
            if low >= high:
                continue
            rows = block[low - positions.start : high - positions.start]
            made[low - tokens.start : high - tokens.start] = _heads_of(placed, rows)
        whole = made if dims is None else made[:, :, list(dims)]
        if selected.point.dtype == "int32":
            whole = whole.view(np.int32)
        return whole if selected.point.heads else whole.reshape(len(tokens), -1)

    def _pattern(self, placed: _Placed, tokens: range) -> NDArray[np.float32]:
        selected = placed.selected
        nothing = 0.0 if selected.point.kind == "pattern" else -np.inf
        made = np.full((len(selected.heads), len(tokens), tokens.stop), nothing, np.float32)
        head = 0
        for number, (_, count) in zip(placed.places, selected.runs()):
            for positions, block in self._patterns.get(number, ()):
                low, high = max(positions.start, tokens.start), min(positions.stop, tokens.stop)
                if low >= high:
                    continue
                rows = block[low - positions.start : high - positions.start]
                length = min(rows.shape[-1], tokens.stop)
                made[head : head + count, low - tokens.start : high - tokens.start, :length] = rows[
                    :, :, :length
                ].swapaxes(0, 1)
            head += count
        return made


def _heads_of(placed: _Placed, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The selected heads of rows of a block, (n, heads, values)."""
    view, found = placed.selected.point.view, []
    for column, (_, count) in zip(placed.places, placed.selected.runs()):
        run = rows[:, column : column + count * view.apart].reshape(len(rows), count, view.apart)
        found.append(run[:, :, : view.count])
    return np.concatenate(found, 1) if len(found) > 1 else found[0]


def values_of(
    recording: Recording, rows: str, positions: range, block: NDArray[np.float32]
) -> Iterator[tuple[Selected, range, NDArray[Any]]]:
    """The parts of a block that a step has handed over: each with its positions and its values, (n, ...)."""
    for selected, placed in recording.placed.items():
        point, tokens = selected.point, selected.tokens
        if point.kind != "value" or point.rows != rows:
            continue
        low, high = max(positions.start, tokens.start), min(positions.stop, tokens.stop)
        if low < high:
            made = _heads_of(placed, block[low - positions.start : high - positions.start])
            made = made if selected.dims is None else made[:, :, list(selected.dims)]
            whole = made.view(np.int32) if point.dtype == "int32" else made
            yield selected, range(low, high), whole if point.heads else whole.reshape(high - low, -1)


def patterns_of(
    recording: Recording, number: int, positions: range, rows: NDArray[np.float32]
) -> Iterator[tuple[Selected, range, NDArray[np.float32]]]:
    """The patterns that a step has handed over for pattern tap ``number``, (n, heads, tokens)."""
    for selected, placed in recording.placed.items():
        if selected.point.kind == "value" or number not in placed.places:
            continue
        low = max(positions.start, selected.tokens.start)
        high = min(positions.stop, selected.tokens.stop)
        if low < high:
            yield selected, range(low, high), rows[low - positions.start : high - positions.start]


def _entries(
    one: _BoundEdit, values: NDArray[np.float32] | None, alike: bool, factor: float, start: int, stop: int
) -> list[EditEntry]:
    """The entries of the positions from start to stop - 1 that are selected and have values."""
    tokens = one.selected.tokens
    if values is None:
        return [EditEntry(p, factor, None) for p in range(max(start, tokens.start), min(stop, tokens.stop))]
    last = tokens.stop if alike else min(tokens.stop, tokens.start + len(values))
    return [
        EditEntry(p, factor, values[0 if alike else p - tokens.start])
        for p in range(max(start, tokens.start), min(stop, last))
    ]
