"""The recorder of a sequence: it passes the values of its steps to sinks, and applies edits to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from pellucid.errors import PellucidError
from pellucid.plan.passes import Watch
from pellucid.runtime.batch import EditEntry, PatternChange
from pellucid.trace.budget import ReservedBytes, TraceBudget
from pellucid.trace.edit_reach import BoundPatternEdit, EditReach, padded_change
from pellucid.trace.edits import (
    CallContext,
    CalledRows,
    Edit,
    edit_error,
    pattern_rows,
    rows_of,
    run_function,
    shape_of,
)
from pellucid.trace.instrumentation import BoundCall, BoundEdit, BoundStateEdit, Instrumentation, part_of
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.output_points import array_of
from pellucid.trace.positions import EVERY, Positions
from pellucid.trace.selection import Selection
from pellucid.trace.sinks import MemorySink, Sink

# Calls the functions of a sequence's edits: between two parts of a step, with the values of the step.


class _ReadRows(NamedTuple):
    """Columns of the part ``selected`` that a function reads, at ``positions`` of a step."""

    selected: Selection
    positions: NDArray[np.int64]
    values: NDArray[np.float32]


class EditFunctions:
    """The functions of the edits of one sequence. Each runs once for a position: a second step finds its result.

    ``number`` is the sequence's number in its request, ``prompt`` the number of the prompt's tokens, ``state`` the
    state of the functions of a request, and ``piece`` the text of a token. If a function raises an exception, the
    values stay unchanged, and ``error`` keeps the exception for the sequence's task.
    """

    def __init__(
        self,
        instrumentation: Instrumentation,
        number: int,
        prompt: int,
        state: dict[Any, Any],
        piece: Callable[[int], str],
    ) -> None:
        self._instrumentation = instrumentation
        self._number, self.prompt, self._state, self._piece = number, prompt, state, piece
        self.error: BaseException | None = None
        self._called: dict[tuple[str, int, int], CalledRows] = {}
        self._read: dict[tuple[str, Positions], list[_ReadRows]] = {}

    def follow(self, other: EditFunctions) -> None:
        """Continue after the positions that ``other`` has seen."""
        self.prompt, self._state = other.prompt, other._state
        self._called = {key: rows.copy() for key, rows in other._called.items()}

    def forget(self) -> None:
        """Call the functions again, for a sequence that is computed again with other values."""
        self._called.clear()

    def changed_state(
        self, bound: BoundStateEdit, number: int, position: int, token: int, state: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        selected, edit = bound.selected, bound.edit

        def checked(result: Any) -> NDArray[np.float32]:
            return rows_of(selected, edit, result)[0]

        at, own = np.array([position]), np.array([token])
        known = self._call(("state", number, 0), selected, edit, at, own, state[None].copy(), checked)
        return None if known is None else known.of(position)

    def called(
        self, number: int, start: int, tokens: Sequence[int], values: NDArray[np.float32]
    ) -> Sequence[EditEntry]:
        bound = self._instrumentation.edits[number]
        assert isinstance(bound, BoundCall)
        selected, edit = bound.selected, bound.edit
        positions = selected.tokens.within(start, start + len(values))
        rows = values[positions - start]
        if bound.reads:
            parts = self._read.setdefault((bound.name, selected.tokens), [])
            parts[bound.number :] = [_ReadRows(selected, positions, rows[:, bound.picked])]
            return []
        if bound.pauses == 1:
            part = rows[:, bound.picked].reshape(len(positions), *shape_of(selected))
        else:
            _, part = self._reading(bound.name, selected)
        own = np.asarray(tokens, np.int64)[positions - start]

        def checked(result: Any) -> NDArray[np.float32]:
            return rows_of(selected, edit, result)[0]

        known = self._call(("value", number - bound.number, 0), selected, edit, positions, own, part, checked)
        if known is None:
            return []
        entries, first = list[EditEntry](), bound.number * len(bound.picked)
        for at, row in zip(positions.tolist(), rows):
            if (changed := known.of(at)) is not None:
                row[bound.picked] = changed[first : first + len(bound.picked)]
                entries.append(EditEntry(at, 0.0, row))  # the columns between keep their bits
        return entries

    def called_pattern(
        self, number: int, positions: NDArray[np.int64], tokens: NDArray[np.int64], rows: NDArray[np.float32]
    ) -> PatternChange | None:
        heads, (_, _, keys) = self._instrumentation.pattern_edits[number], rows.shape
        x, changed, zero = rows.copy(), np.zeros(rows.shape, bool), np.float32(0)
        for index, bound in enumerate(heads.edits):
            if bound.edit.function is None:
                factors, addends = heads.change_of(bound, positions, keys)
                with np.errstate(invalid="ignore"):
                    x = np.where(factors == 0, zero, x * factors)
                if addends is not None:
                    x, changed = x + addends, changed | (addends != 0)
                changed = changed | (factors != 1)
                continue
            chosen = np.isin(positions, bound.positions(int(positions[0]), int(positions[-1]) + 1))
            columns = (bound.selected.keys or EVERY).listed(keys)
            own_heads = np.array(bound.selected.heads) - heads.first
            if not len(columns):
                continue
            at = np.ix_(np.flatnonzero(chosen), own_heads, columns)
            checked = partial(_expanded, bound, columns, keys)
            key = ("pattern", number, index)
            own = positions[chosen], tokens[chosen], x[at]
            known = self._call(key, bound.selected, bound.edit, *own, checked)
            if self.error is not None:
                return None
            for row, position in zip(at[0].ravel(), own[0]):
                if known is not None and (made := known.of(int(position))) is not None:
                    to = np.ix_([row], own_heads, columns[columns < made.shape[-1]])
                    x[to], changed[to] = made[:, to[2].ravel()], True
        return padded_change(positions, (~changed).astype(np.float32), np.where(changed, x, zero))

    def _call(
        self,
        key: tuple[str, int, int],
        selected: Selection,
        edit: Edit,
        positions: NDArray[np.int64],
        tokens: NDArray[np.int64],
        values: NDArray[np.float32],
        checked: Callable[[Any], NDArray[np.float32]],
    ) -> CalledRows | None:
        """Call the function of an edit for the positions that it has not seen. Returns its results, or None."""
        known = self._called.setdefault(key, CalledRows())
        if not len(positions) or self.error is not None:
            return None
        if (new := known.new(positions)).any():
            at_new, ids = positions[new], tokens[new].tolist()
            reads = {name: self._reading(name, selected) for name in edit.reads}
            read = {name: part[np.isin(at, at_new)] for name, (at, part) in reads.items()}
            context = CallContext(selected, self._number, at_new, ids, self.prompt, self._state, self._piece, read)
            try:
                known.keep(at_new, run_function(edit, values[new], context, checked))
            except PellucidError as error:
                self.error = error
                return None
        return known

    def _reading(self, name: str, selected: Selection) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The positions of ``selected`` in the step, and the values (n, ...) that its function reads."""
        parts = self._read[name, selected.tokens]
        values = np.concatenate([part.values for part in parts], 1)
        return parts[0].positions, values.reshape(len(values), *shape_of(parts[0].selected))


def _expanded(bound: BoundPatternEdit, columns: NDArray[np.int64], keys: int, result: Any) -> NDArray[np.float32]:
    """The result of a function for some ``columns`` as rows (n or 1, heads, keys)."""
    selected, shape = structs.replace(bound.selected, keys=None), np.shape(result)
    heads = len(selected.heads)
    if (shape and shape[-1] not in (1, len(columns))) or (len(shape) == 3 and shape[1] != heads):
        reason = f"the function returns values of shape {shape} for (n, {heads}, {len(columns)})"
        raise edit_error(bound.edit.where, reason)
    made = pattern_rows(selected, bound.edit, np.swapaxes(result, 0, 1) if len(shape) == 3 else result)
    rows = np.zeros((made.shape[1], heads, keys), np.float32)
    rows[:, :, columns] = made.swapaxes(0, 1)
    return rows


SOME = 3
"""Maximum number of edits that a message names."""


class SequenceRecorder:
    """Records the values of one sequence, and applies edits to them.

    ``sinks`` receive each step's blocks of values: a ``memory`` with a ``budget`` (None: no value is kept), and a
    stream (``stream_to``). ``tokens`` returns the tokens that the sequence has read, and ``outputs`` holds the
    generated tokens. ``source`` is the recorder of the source in an encoder-decoder. The other arguments are as in
    ``EditFunctions``.
    """

    def __init__(
        self,
        instrumentation: Instrumentation,
        budget: TraceBudget | None = None,
        reserve: ReservedBytes | None = None,
        source: SequenceRecorder | None = None,
        *,
        number: int = 0,
        prompt: int = 0,
        state: dict[Any, Any] | None = None,
        piece: Callable[[int], str] = str,
    ) -> None:
        self.instrumentation, self.source = instrumentation, source
        self.memory = None if budget is None else MemorySink(budget, reserve)
        self.sinks: list[Sink] = [] if self.memory is None else [self.memory.put]
        self.streamed = False
        self.tokens: Callable[[], Sequence[int]] = tuple
        self.outputs: Any = None
        functions = EditFunctions(instrumentation, number, prompt, {} if state is None else state, piece)
        self._functions = functions
        self.called, self.called_pattern, self.forget = functions.called, functions.called_pattern, functions.forget
        self.scored: Sequence[tuple[LinearProbe, Selection]] = ()
        """The linear probes, each with the part that it reads."""
        self._scores: dict[int, dict[str, float]] = {}

    def stream_to(self, sink: Sink) -> None:
        """Pass the values to one more sink, unless they are streamed already."""
        if not self.streamed:
            self.streamed = True
            self.sinks.append(sink)

    @property
    def watch(self) -> Watch:
        return self.instrumentation.watch

    @property
    def first_changed(self) -> int | None:
        return self.instrumentation.first_changed

    @property
    def calls(self) -> bool:
        return self.instrumentation.calls

    @property
    def edited(self) -> str:
        names = list(dict.fromkeys(reach.where for reach in self.reaches))
        more = f" and {len(names) - SOME:,} more" if len(names) > SOME else ""
        return ", ".join(names[:SOME]) + more

    @property
    def reaches(self) -> list[EditReach]:
        """The reaches of the edits of the sequence and of its source."""
        return [*self.instrumentation.reaches, *(self.source.reaches if self.source else ())]

    @property
    def closed(self) -> bool:
        return False

    @property
    def first_recorded(self) -> int | None:
        return self.instrumentation.tokens.start if self.instrumentation.recorded else None

    @property
    def prompt(self) -> int:
        """The number of the prompt's tokens."""
        return self._functions.prompt

    @property
    def error(self) -> BaseException | None:
        return self._functions.error

    @error.setter
    def error(self, error: BaseException) -> None:
        self._functions.error = error

    @property
    def dropped(self) -> int:
        """The number of blocks of values that did not fit into the budget."""
        return self.memory.dropped if self.memory else 0

    def follow(self, other: SequenceRecorder) -> None:
        """Continue after the tokens that ``other`` has recorded."""
        self.source = other.source
        self._functions.follow(other._functions)
        if self.memory and other.memory:
            self.memory.follow(other.memory)
        self._scores = {position: dict(scores) for position, scores in other._scores.items()}

    def positions(self, start: int, stop: int) -> range:
        tokens = self.instrumentation.tokens
        first = min(max(start, tokens.start), stop)
        return range(first, max(first, min(stop, tokens.stop)))

    def chunk_end(self, start: int) -> int | None:
        ends = [int(own[0]) + 1 for edit in self.instrumentation.state_edits if len(own := edit.tokens.next(start))]
        return min(ends, default=None)

    def changed_state(
        self, number: int, position: int, token: int, state: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        bound = self.instrumentation.state_edits[number]
        if position not in bound.tokens:
            return None
        if bound.edit.function is None:
            return bound.change(position, state)
        return self._functions.changed_state(bound, number, position, token, state)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        self._score(rows, positions, values)
        for sink in self.sinks:
            sink(rows, positions, values)

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        for sink in self.sinks:
            sink(block, positions, rows)

    def take_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        if self.memory:
            self.memory.put_state(number, position, values)

    def _score(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """Compute the scores of the linear probes that read values with these rows."""
        for probe, part in self.scored:
            recorded = self.instrumentation.recorded[part]
            if part.point.rows != rows:
                continue
            for shared in recorded.selected.tokens.runs(positions.start, positions.stop):
                own = values[shared.start - positions.start : shared.stop - positions.start]
                for position, row in zip(shared, part_of(recorded, own)):
                    self._scores.setdefault(position, {})[probe.name] = probe.score(row.reshape(-1))

    def scores(self, position: int) -> tuple[dict[str, float], str | None] | None:
        if not self.scored:
            return None
        scores = self._scores.pop(position)
        above = (
            probe.name
            for probe, _ in self.scored
            if probe.stop_above is not None and scores[probe.name] > probe.stop_above
        )
        return {probe.name: scores[probe.name] for probe, _ in self.scored}, next(above, None)

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        bound = self.instrumentation.edits[number]
        assert isinstance(bound, BoundEdit)
        return bound.entries(start, stop)

    def pattern_positions(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        return self.instrumentation.pattern_edits[number].positions(start, stop)

    def pattern_change(self, number: int, positions: NDArray[np.int64], keys: int) -> PatternChange:
        return self.instrumentation.pattern_edits[number].change(positions, keys)

    @property
    def count(self) -> int:
        """The number of tokens that the sequence has read."""
        return len(self.tokens())

    def selected(self, part: Selection) -> Selection:
        """A selected part with its positions in this sequence."""
        if part.point.of_source and self.source is not None:
            return self.source.selected(part)
        recorded = self.instrumentation.recorded.get(part)
        return part if recorded is None else recorded.selected

    def array(self, selected: Selection) -> NDArray[Any]:
        """The values of a selected part: (T, ...) in the order of the selection; NaN at unrecorded positions.

        Patterns and scores are (heads, T, T'), from query to key.
        """
        if selected.point.of_source and self.source is not None:
            return self.source.array(selected)
        if selected.point.kind == "output":
            return array_of(selected.name, self.outputs)
        recorded, memory = self.instrumentation.recorded[selected], self.memory
        assert memory is not None, "only a trace with a budget is read"
        selected, mask = recorded.selected, selected.point.mask
        keys = self.source.count if mask and mask.cross and self.source else self.count
        if selected.point.rows == "sequences":
            return memory.array(recorded, np.arange(1), keys)
        tokens = selected.tokens.within(0, self.count)
        values = memory.array(recorded, tokens, keys)
        if len(selected.tokens.ranges) == 1:
            return values
        rows = np.searchsorted(tokens, selected.tokens.listed(self.count))
        return values[:, rows] if selected.point.kind in ("pattern", "scores") else values[rows]
