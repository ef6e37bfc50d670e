"""The instrumentation of a request: taps that record parts of points, and edits, each split into runs of columns.

``plan/passes.py`` adds the operations of taps and edits to the plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.plan.passes import ColumnEdit, PatternTap, StateTap, Tap, Watch
from pellucid.plan.points import Point, RowKind
from pellucid.runtime.batch import EditEntry
from pellucid.sample.candidates import Candidates
from pellucid.trace.edit_reach import bind_pattern, grouped, reach_of
from pellucid.trace.edits import ColumnRun, Edit, columns_of, edit_error, rows_of, spans_of
from pellucid.trace.positions import EVERY, Positions, TokenTexts
from pellucid.trace.selection import Selection, select

MOST_RUNS = 4096
"""Maximum number of runs of columns of an edit. Each run is an operation of the step."""
REFUSED = {
    "output": "an output cannot be changed; change the sampling options, or the logits (project.logits)",
    "probabilities": "probabilities cannot be changed; change the logits (project.logits)",
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
            tokens = tokens.first(len(values))
        positions = tokens.within(start, stop).tolist()
        if values is None:
            return [EditEntry(position, factor, None) for position in positions]
        return [
            EditEntry(position, factor, values[0 if self.broadcast else tokens.row_of(position)])
            for position in positions
        ]


class BoundCall(Struct, frozen=True):
    """A pause of the step for the function of ``edit``, which changes the part ``selected``, or reads it (``reads``).

    ``columns`` span the selected columns, and ``picked`` are the selected columns in the order of the values, counted
    from the first column of the span. If the parts of a value have their own rows, each part has a pause: number
    ``number`` of ``pauses``. The values of a pause that reads are kept under the name ``name``.
    """

    selected: Selection
    edit: Edit
    columns: ColumnRun
    picked: NDArray[np.int64]
    number: int
    pauses: int
    name: str
    reads: bool


class Instrumentation:
    """The parts to record (``selected``), and the ``edits``, each with the part that it changes.

    Functions of edits may read other ``points``. Positions that depend on the prompt are all positions until
    ``resolve`` knows the prompt.

    Raises:
        InvalidRequest: an edit's values do not fit its part, or its point cannot be changed (such as probabilities).
    """

    def __init__(
        self,
        selected: Sequence[Selection],
        edits: Sequence[tuple[Selection, Edit]],
        points: Mapping[str, Point],
        prompt: TokenTexts | None = None,
        source: TokenTexts | None = None,
    ) -> None:
        self._given, self._points = (selected, edits), points
        self.is_relative = prompt is None and any(
            part.is_relative for part in (*selected, *(part for part, _ in edits))
        )
        named = {part: part for part in selected}
        if prompt is not None:
            named = {part: part.resolve(prompt, source) for part in selected}
            edits = [(part.resolve(prompt, source), edit) for part, edit in edits]
        self.selected = tuple(named.values())
        self._columns: dict[RowKind, int] = {}
        taps, patterns, states = list[Tap](), list[PatternTap](), list[StateTap]()
        planned = {name: part for name, part in named.items() if part.point.kind != "output"}
        self.recorded = {name: self._recorded(part, taps, patterns, states) for name, part in planned.items()}
        self.watches_chain = len(planned) < len(named)
        in_plan = list(planned.values())
        for part, edit in edits:
            if remedy := REFUSED.get(part.point.kind):
                raise edit_error(edit.where, remedy)
            if part.point.dtype != "float32":
                raise edit_error(edit.where, "expert numbers cannot be changed; change the router's scores")
        self.reaches = [reach_of(part, edit) for part, edit in edits]
        self.edits: list[BoundEdit | BoundCall] = []
        for part, edit in edits:
            if part.point.kind == "value":
                self.edits += _bound(part, edit) if edit.function is None else _called(part, edit)
        self.edits += self._readers(edits)
        self.pattern_edits = list(
            grouped(bind_pattern(part, edit) for part, edit in edits if part.point.kind in ("pattern", "scores"))
        )
        self.first_changed = min((part.tokens.start for part, _ in edits), default=None)
        self.calls = any(edit.function is not None for _, edit in edits)
        changes = [
            ColumnEdit(
                run.selected.point.operation,
                run.columns.first,
                run.columns.count,
                run.selected.point.write,
                run.columns.part,
                isinstance(run, BoundCall),
            )
            for run in self.edits
        ]
        pattern_changes = tuple(own.watched for own in self.pattern_edits)
        self.state_edits = [_bound_state(part, edit) for part, edit in edits if part.point.kind == "state"]
        changed = [
            StateTap(one.point.write, one.point.part, one.point.view.count)
            for one in (bound.selected for bound in self.state_edits)
        ]
        self.watch = Watch(tuple(taps), tuple(patterns), tuple(changes), pattern_changes, tuple(states), tuple(changed))
        self.tokens = range(
            min((part.tokens.start for part in in_plan), default=0),
            max((part.tokens.stop for part in in_plan), default=0),
        )
        self.first_output = min((part.tokens.start for part in in_plan if part.point.rows == "outputs"), default=None)

    def resolve(self, prompt: TokenTexts, source: TokenTexts | None) -> Instrumentation:
        """The instrumentation of a sequence with this prompt. Raises InvalidRequest if it lacks a selected position."""
        if not self.is_relative:
            return self
        return Instrumentation(*self._given, self._points, prompt, source)

    def _readers(self, edits: Sequence[tuple[Selection, Edit]]) -> Iterator[BoundCall]:
        """Yield the values that functions read, once for each part and the positions of its edits."""
        found = dict[tuple[str, Positions], list[BoundCall]]()
        for part, edit in edits:
            for name in edit.reads:
                found.setdefault((name, part.tokens), _reader(part, edit, name, select(self._points, [name])))
        for pauses in found.values():
            yield from pauses

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


def _bound(selected: Selection, edit: Edit) -> list[BoundEdit]:
    values, broadcast = (None, True) if edit.values is None else rows_of(selected, edit, edit.values)
    runs = columns_of(selected)
    if len(runs) > MOST_RUNS:
        reason = f"{len(runs):,} runs of columns; the limit is {MOST_RUNS:,}: use call, which takes any columns"
        raise edit_error(edit.where, reason)
    bound, done = list[BoundEdit](), 0
    for run in runs:
        part = None if values is None else np.ascontiguousarray(values[:, done : done + run.count])
        bound.append(BoundEdit(selected, edit, part, broadcast, run))
        done += run.count
    return bound


def _called(selected: Selection, edit: Edit) -> list[BoundCall]:
    """The pauses for a function. If there are several, they read all parts before the first part changes."""
    changes = list(_pauses(selected, edit, edit.where, reads=False))
    return [*(_pauses(selected, edit, edit.where, reads=True) if len(changes) > 1 else ()), *changes]


def _pauses(selected: Selection, edit: Edit, name: str, *, reads: bool) -> Iterator[BoundCall]:
    spans = spans_of(selected)
    for number, (columns, picked) in enumerate(spans):
        yield BoundCall(selected, edit, columns, picked, number, len(spans), name, reads)


class BoundStateEdit(NamedTuple):
    """An edit of a state after each selected position: one row of values, or a row for each position."""

    selected: Selection
    edit: Edit
    values: NDArray[np.float32] | None

    def change(self, position: int, state: NDArray[np.float32]) -> NDArray[np.float32]:
        """The state (size,) after the edit at a position, which has values."""
        changed = state * np.float32(self.edit.factor)
        if self.values is not None:
            changed += self.values[0 if len(self.values) == 1 else self.tokens.row_of(position)]
        return changed

    @property
    def tokens(self) -> Positions:
        """The positions after which the state changes."""
        tokens = self.selected.tokens
        return tokens if self.values is None or len(self.values) == 1 else tokens.first(len(self.values))


def _bound_state(selected: Selection, edit: Edit) -> BoundStateEdit:
    values = None if edit.values is None else rows_of(selected, edit, edit.values)[0]
    return BoundStateEdit(selected, edit, values)


def _reader(part: Selection, edit: Edit, name: str, found: Sequence[Selection]) -> list[BoundCall]:
    """The values of the part ``found`` at the positions of an edit of ``part``, for its function."""
    read = found[0]
    wrong = len(found) > 1 or read.point.kind != "value" or read.tokens != EVERY
    if wrong or read.point.of_source != part.point.of_source:
        raise edit_error(edit.where, f"its function cannot read {name}: give one point, with all tokens")
    if read.point.operation >= part.point.operation or read.point.rows != part.point.rows:
        raise edit_error(edit.where, f"its function cannot read {name}, which is computed after {part.name}")
    selected: Selection = replace(read, tokens=part.tokens)
    return list(_pauses(selected, edit, name, reads=True))


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
        point = selected.point
        if point.kind not in ("value", "probabilities") or point.rows != rows:
            continue
        for shared in selected.tokens.runs(positions.start, positions.stop):
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
        if selected.point.kind not in ("pattern", "scores") or recorded.places != (block,):
            continue
        for shared in selected.tokens.runs(positions.start, positions.stop):
            own = rows[shared.start - positions.start : shared.stop - positions.start]
            if selected.keys is not None:
                own = own[:, :, selected.keys.listed(own.shape[-1])]
            yield selected, shared, own


def common(a: range, b: range) -> range:
    """The positions that two ranges share; empty if they share none."""
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))
