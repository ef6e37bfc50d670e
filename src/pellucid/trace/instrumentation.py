"""The instrumentation of a request: taps that record parts of points, and edits, each split into runs of columns.

``plan/traced_plan.py`` adds the operations of taps and edits to the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.kernels.attention.tiles import SPAN
from pellucid.plan.points import RowKind
from pellucid.plan.traced_plan import ColumnEdit, PatternEdit, PatternTap, StateTap, Tap, Watch
from pellucid.runtime.batch import EditEntry, PatternEntry
from pellucid.sample.candidates import Candidates
from pellucid.trace.edit_reach import reach_of
from pellucid.trace.edits import ColumnRun, Edit, columns_of, edit_error, pattern_rows, rows_of
from pellucid.trace.selection import Selection

MOST_RUNS = 4096
"""Maximum number of runs of columns of an edit. Each run is an operation of the step."""
REFUSED = {
    "output": "an output cannot be changed; change the sampling options, or the logits (project.logits)",
    "state": "a state cannot be changed; change the input or the output of its layer",
    "probabilities": "probabilities cannot be changed; change the logits (project.logits)",
    "scores": "scores cannot be changed; change the pattern, or the queries (q_rotary)",
}
"""The kinds of points that cannot be edited, with the remedy."""


class RecordedPart(Struct, frozen=True):
    """A selected part, and the ``places`` of its values: the first column of each run of heads in a block of values.

    For a pattern, ``places`` holds the index of its block of pattern taps; for a state, the index of its state tap.
    """

    selected: Selection
    places: tuple[int, ...]


class BoundEdit(Struct, frozen=True):
    """One run of columns of an edit, with the selected part and the values for these columns.

    The values have a row for each selected position. With ``broadcast`` a single row applies to all positions.
    """

    selected: Selection
    edit: Edit
    values: NDArray[np.float32] | None
    broadcast: bool
    columns: ColumnRun

    def entries(self, start: int, stop: int) -> list[EditEntry]:
        """The entries of the positions from ``start`` to ``stop`` - 1 that are selected and have values."""
        tokens, values, factor = self.selected.tokens, self.values, self.edit.factor
        if values is not None and not self.broadcast:
            tokens = tokens[: len(values)]
        positions = range(max(start, tokens.start), min(stop, tokens.stop))
        if values is None:
            return [EditEntry(position, factor, None) for position in positions]
        rows = (0 if self.broadcast else position - tokens.start for position in positions)
        return [EditEntry(position, factor, values[row]) for position, row in zip(positions, rows)]


class BoundPatternEdit(Struct, frozen=True):
    """One run of heads of a pattern edit: ``count`` heads from head ``first`` on.

    ``values`` (heads, rows, keys) are added. They have a row for each of the positions ``tokens``, or a single row that
    applies to all positions. Without ``values`` nothing is added.
    """

    factor: float
    values: NDArray[np.float32] | None
    tokens: range
    operation: int
    first: int
    count: int

    def entries(self, start: int, stop: int, keys: int) -> list[PatternEntry]:
        """The entries of the positions from ``start`` to ``stop`` - 1, for rows of ``keys`` weights."""
        entries = []
        for position in range(max(start, self.tokens.start), min(stop, self.tokens.stop)):
            for head in range(self.count):
                values = self._row(head, position, keys)
                if values is not None or self.values is None:
                    entries.append(PatternEntry(position, head, self.factor, values))
        return entries

    def _row(self, head: int, position: int, keys: int) -> NDArray[np.float32] | None:
        """The values to add to a head's row at a position, padded to a multiple of ``SPAN``; None to add nothing."""
        if self.values is None:
            return None
        row = 0 if self.values.shape[1] == 1 else position - self.tokens.start
        if row >= self.values.shape[1]:
            return None
        values = self.values[head, row, :keys]
        padded = np.zeros(-(-keys // SPAN) * SPAN, np.float32)
        padded[: len(values)] = values
        return padded


class Instrumentation:
    """The parts to record (``selected``), and the ``edits``, each with the part that it changes.

    Raises:
        InvalidRequest: an edit's values do not fit its part, or its point cannot be changed (such as scores).
    """

    def __init__(self, selected: Sequence[Selection], edits: Sequence[tuple[Selection, Edit]]) -> None:
        self.selected = tuple(selected)
        self._columns: dict[RowKind, int] = {}
        taps, patterns, states = list[Tap](), list[PatternTap](), list[StateTap]()
        in_plan = [part for part in dict.fromkeys(selected) if part.point.kind != "output"]
        self.recorded = {part: self._recorded(part, taps, patterns, states) for part in in_plan}
        self.watches_chain = len(in_plan) < len(set(selected))
        for part, edit in edits:
            if remedy := REFUSED.get(part.point.kind):
                raise edit_error(edit.where, remedy)
        self.reaches = [reach_of(part, edit) for part, edit in edits]
        self.edits = [run for part, edit in edits if part.point.kind == "value" for run in _bound(part, edit)]
        self.pattern_edits = [
            run for part, edit in edits if part.point.kind == "pattern" for run in _bound_pattern(part, edit)
        ]
        _refuse_twice(self.pattern_edits)
        changes = [
            ColumnEdit(
                run.selected.point.operation,
                run.columns.first,
                run.columns.count,
                run.selected.point.write,
                run.columns.part,
                run.edit.function is not None,
            )
            for run in self.edits
        ]
        pattern_changes = [PatternEdit(run.operation, run.first, run.count) for run in self.pattern_edits]
        self.watch = Watch(
            tuple(taps), tuple(patterns), tuple(changes), tuple(pattern_changes), tuple(states)
        )
        self.tokens = range(
            min((part.tokens.start for part in in_plan), default=0),
            max((part.tokens.stop for part in in_plan), default=0),
        )
        self.first_output = min(
            (part.tokens.start for part in in_plan if part.point.rows == "outputs"), default=None
        )

    def _recorded(
        self, selected: Selection, taps: list[Tap], patterns: list[PatternTap], states: list[StateTap]
    ) -> RecordedPart:
        """Add the taps of a part."""
        point, places = selected.point, list[int]()
        if point.kind == "state":
            states.append(StateTap(point.write, point.part, point.view.count))
            return RecordedPart(selected, (len(states) - 1,))
        if point.kind in ("pattern", "scores"):
            block = patterns[-1].block + 1 if patterns else 0
            raw = point.kind == "scores"
            patterns += [PatternTap(point.operation, *run, raw, block) for run in selected.runs()]
            return RecordedPart(selected, (block,))
        for head, count in selected.runs():
            column = self._columns.get(point.rows, 0)
            places.append(column)
            stride = point.view.stride
            if point.view.places:
                parts = range(head, head + count)
                taps += [Tap(point.operation, 0, stride, point.write, part) for part in parts]
            else:
                taps.append(Tap(point.operation, head * stride, count * stride, point.write))
            self._columns[point.rows] = column + count * stride
        return RecordedPart(selected, tuple(places))

    def bytes_for(self, tokens: int) -> int:
        """The number of bytes of the values that are recorded of a sequence of ``tokens`` tokens."""
        rows = len(range(max(self.tokens.start, 0), min(self.tokens.stop, tokens)))
        columns = sum(self._columns.values()) + sum(tap.size for tap in self.watch.states)
        # A recorded row of a pattern has a weight for each token up to the end of its step. If one step reads the whole
        # sequence, each row has a weight for each token of the sequence.
        weights = tokens * sum(tap.count for tap in self.watch.patterns)
        return 4 * rows * (columns + weights)


def _bound_pattern(selected: Selection, edit: Edit) -> list[BoundPatternEdit]:
    if edit.function is not None:
        raise edit_error(edit.where, "a function cannot change a pattern; give the new pattern as values")
    values = None if edit.values is None else pattern_rows(selected, edit)
    bound, done = [], 0
    for first, count in selected.runs():
        part = None if values is None else values[done : done + count]
        bound.append(
            BoundPatternEdit(edit.factor, part, selected.tokens, selected.point.operation, first, count)
        )
        done += count
    return bound


def _refuse_twice(edits: Sequence[BoundPatternEdit]) -> None:
    """Refuse two edits of the same head's pattern, because their effects would not combine."""
    seen = set[tuple[int, int]]()
    for edit in edits:
        heads = {(edit.operation, head) for head in range(edit.first, edit.first + edit.count)}
        if heads & seen:
            raise InvalidRequest("two edits change the pattern of the same head: combine them into one edit")
        seen |= heads


def _bound(selected: Selection, edit: Edit) -> list[BoundEdit]:
    if selected.point.dtype != "float32":
        raise edit_error(edit.where, "expert numbers cannot be changed; change the router's scores")
    values, broadcast = (None, True) if edit.values is None else rows_of(selected, edit, edit.values)
    runs = columns_of(selected)
    if len(runs) > MOST_RUNS:
        raise edit_error(edit.where, f"{len(runs):,} runs of columns; the limit is {MOST_RUNS:,}")
    if edit.function is not None and len(runs) > 1:
        reason = "a function can change only adjacent columns; select all heads, or one head"
        raise edit_error(edit.where, reason)
    bound, done = list[BoundEdit](), 0
    for run in runs:
        part = None if values is None else np.ascontiguousarray(values[:, done : done + run.count])
        bound.append(BoundEdit(selected, edit, part, broadcast, run))
        done += run.count
    return bound


def part_of(recorded: RecordedPart, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The selected part of a block's ``rows``, (n, heads, values)."""
    values, dims = _heads_of(recorded, rows), recorded.selected.dims
    if recorded.selected.point.kind == "probabilities":
        values = probabilities_of(values)
    return values if dims is None else values[:, :, list(dims)]


def probabilities_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The softmax of the last axis, with the same bits on all processors; NaN for logits that give no distribution."""
    found = np.full(logits.shape, np.nan, np.float32)
    for index in np.ndindex(logits.shape[:-1]):
        row = np.ascontiguousarray(logits[index])
        if np.isfinite(row.max()):
            found[index] = Candidates(None, row).probabilities()
    return found


def _heads_of(recorded: RecordedPart, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    view, parts = recorded.selected.point.view, []
    for column, (_, count) in zip(recorded.places, recorded.selected.runs()):
        run = rows[:, column : column + count * view.stride].reshape(len(rows), count, view.stride)
        parts.append(run[:, :, : view.count])
    return np.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def values_of(
    parts: Iterable[RecordedPart], rows: str, positions: range, block: NDArray[np.float32]
) -> Iterator[tuple[Selection, range, NDArray[Any]]]:
    """Yield the recorded ``parts`` in a step's block of values, each with its positions and its values, (n, ...)."""
    for recorded in parts:
        selected = recorded.selected
        point, shared = selected.point, common(positions, selected.tokens)
        if point.kind in ("value", "probabilities") and point.rows == rows and shared:
            values = part_of(recorded, block[shared.start - positions.start : shared.stop - positions.start])
            typed = values.view(point.dtype)
            yield selected, shared, typed if point.heads else typed.reshape(len(shared), -1)


def patterns_of(
    parts: Iterable[RecordedPart], block: int, positions: range, rows: NDArray[np.float32]
) -> Iterator[tuple[Selection, range, NDArray[np.float32]]]:
    """Yield the recorded ``parts`` in a step's rows of a ``block`` of pattern taps, each with its positions.

    The values of a pattern are (n, heads, tokens).
    """
    for recorded in parts:
        selected = recorded.selected
        shared = common(positions, selected.tokens)
        if selected.point.kind in ("pattern", "scores") and recorded.places == (block,) and shared:
            yield selected, shared, rows[shared.start - positions.start : shared.stop - positions.start]


def common(a: range, b: range) -> range:
    """The positions that two ranges share; empty if they share none."""
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))
