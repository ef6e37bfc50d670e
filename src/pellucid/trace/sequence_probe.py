"""The probe of a sequence: it collects blocks of values from the steps, calls functions, and builds arrays.

It is over 420 lines because recordings and functions read the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from pellucid.errors import PellucidError
from pellucid.plan.passes import Watch
from pellucid.runtime.batch import EditEntry, PatternChange
from pellucid.trace.budget import ReservedBytes, TakenBytes, TraceBudget
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
from pellucid.trace.instrumentation import BoundCall, BoundEdit, Instrumentation, RecordedPart, part_of
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.output_points import array_of
from pellucid.trace.positions import EVERY, Positions
from pellucid.trace.selection import Selection

SOME = 3
"""Maximum number of edits that a message names."""


class RecordedBlock(NamedTuple):
    """Values of a step at ``positions``, (n, ...), and their bytes of the trace's budget."""

    positions: range
    values: NDArray[np.float32]
    budget: TakenBytes


class _ReadRows(NamedTuple):
    """Columns of the part ``selected`` that a function reads, at ``positions`` of a step."""

    selected: Selection
    positions: NDArray[np.int64]
    values: NDArray[np.float32]


class SequenceProbe:
    """Records the values of one sequence, and applies edits to them.

    Each block takes bytes of ``budget`` (None: no block is kept), first from the bytes that ``reserve`` holds.
    ``error`` is the exception that an edit's function raised. ``tokens`` returns the tokens that the sequence has read,
    and ``outputs`` holds the generated tokens. ``source`` is the probe of the source in an encoder-decoder. ``notify``
    is called with every block, including blocks that are not kept. ``dropped`` counts the blocks that did not fit into
    the budget.
    """

    def __init__(
        self,
        instrumentation: Instrumentation,
        budget: TraceBudget | None,
        reserve: ReservedBytes | None = None,
        source: SequenceProbe | None = None,
    ) -> None:
        self.instrumentation, self._budget, self._reserve = instrumentation, budget, reserve
        self.source = source
        self.notify: Callable[..., object] | None = None
        self.error: BaseException | None = None
        self.dropped = 0
        self.tokens: Callable[[], Sequence[int]] = tuple
        self.outputs: Any = None
        self._blocks: dict[str, list[RecordedBlock]] = {}
        self._patterns: dict[int, list[RecordedBlock]] = {}
        self._states: dict[int, dict[int, RecordedBlock]] = {}
        self._called: dict[tuple[str, int, int], CalledRows] = {}
        self._read: dict[tuple[str, Positions], list[_ReadRows]] = {}
        self.number, self.prompt, self.state = 0, 0, dict[Any, Any]()
        """The sequence's number in its request, the number of the prompt's tokens, and the state of functions."""
        self.piece: Callable[[int], str] = str
        self.scored: Sequence[tuple[LinearProbe, Selection]] = ()
        """The linear probes, each with the part that it reads."""
        self._scores: dict[int, dict[str, float]] = {}

    @property
    def watch(self) -> Watch:
        """As in ``Probe``."""
        return self.instrumentation.watch

    @property
    def first_changed(self) -> int | None:
        """As in ``Probe``."""
        return self.instrumentation.first_changed

    @property
    def calls(self) -> bool:
        """As in ``EngineProbe``."""
        return self.instrumentation.calls

    @property
    def edited(self) -> str:
        """As in ``EngineProbe``."""
        names = list(dict.fromkeys(reach.where for reach in self.reaches))
        more = f" and {len(names) - SOME:,} more" if len(names) > SOME else ""
        return ", ".join(names[:SOME]) + more

    @property
    def reaches(self) -> list[EditReach]:
        """The reaches of the edits of the sequence and of its source."""
        return [*self.instrumentation.reaches, *(self.source.reaches if self.source else ())]

    @property
    def closed(self) -> bool:
        """As in ``EngineProbe``."""
        return False

    @property
    def first_recorded(self) -> int | None:
        """As in ``Probe``."""
        return self.instrumentation.tokens.start if self.instrumentation.recorded else None

    def follow(self, other: SequenceProbe) -> None:
        """Continue after the tokens that ``other`` has recorded."""
        self.source, self.prompt, self.state = other.source, other.prompt, other.state
        self._called = {key: rows.copy() for key, rows in other._called.items()}
        self._blocks = {rows: list(blocks) for rows, blocks in other._blocks.items()}
        self._patterns = {number: list(blocks) for number, blocks in other._patterns.items()}
        self._states = {number: dict(states) for number, states in other._states.items()}
        self._scores = {position: dict(scores) for position, scores in other._scores.items()}

    def positions(self, start: int, stop: int) -> range:
        """As in ``Probe``."""
        tokens = self.instrumentation.tokens
        first = min(max(start, tokens.start), stop)
        return range(first, max(first, min(stop, tokens.stop)))

    def chunk_end(self, start: int) -> int | None:
        """As in ``Probe``."""
        ends = [int(own[0]) + 1 for edit in self.instrumentation.state_edits if len(own := edit.tokens.next(start))]
        return min(ends, default=None)

    def changed_state(
        self, number: int, position: int, token: int, state: NDArray[np.float32]
    ) -> NDArray[np.float32] | None:
        """As in ``Probe``. Exceptions are as in ``called``."""
        bound = self.instrumentation.state_edits[number]
        selected, edit = bound.selected, bound.edit
        if position not in bound.tokens:
            return None
        if edit.function is None:
            return bound.change(position, state)

        def checked(result: Any) -> NDArray[np.float32]:
            return rows_of(selected, edit, result)[0]

        at, own = np.array([position]), np.array([token])
        known = self._call(("state", number, 0), selected, edit, at, own, state[None].copy(), checked)
        return None if known is None else known.of(position)

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        self._score(rows, positions, values)
        if self.notify is not None:
            self.notify(rows, positions, values)
        self._put(self._blocks.setdefault(rows, []), positions, values)

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
        """As in ``EngineProbe``."""
        if not self.scored:
            return None
        scores = self._scores.pop(position)
        above = (
            probe.name
            for probe, _ in self.scored
            if probe.stop_above is not None and scores[probe.name] > probe.stop_above
        )
        return {probe.name: scores[probe.name] for probe, _ in self.scored}, next(above, None)

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        if self.notify is not None:
            self.notify(block, positions, rows)
        self._put(self._patterns.setdefault(block, []), positions, rows)

    def take_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        states = self._states.setdefault(number, {})
        states.pop(position, None)
        if budget := self._take(values.nbytes):
            states[position] = RecordedBlock(range(position, position + 1), values.copy(), budget)

    def _put(self, blocks: list[RecordedBlock], positions: range, values: NDArray[np.float32]) -> None:
        """Add a block, and remove earlier values of its positions, which a preempted sequence computes again."""
        if blocks and blocks[-1].positions.stop > positions.start:
            self._remove(blocks, positions)
        if budget := self._take(values.nbytes):
            blocks.append(RecordedBlock(positions, values, budget))

    def _remove(self, blocks: list[RecordedBlock], positions: range) -> None:
        """Remove some positions from blocks."""
        before = blocks[:]
        blocks.clear()
        while before:
            known, values, _ = block = before.pop(0)
            if known.stop <= positions.start or known.start >= positions.stop:
                blocks.append(block)
                continue
            rest = [range(known.start, positions.start), range(positions.stop, known.stop)]
            copies = [(part, values[part.start - known.start : part.stop - known.start].copy()) for part in rest]
            del block, _, values  # releases their bytes of the budget
            for part, copy in copies:
                if len(part) and (budget := self._take(copy.nbytes)):
                    blocks.append(RecordedBlock(part, copy, budget))

    def _take(self, nbytes: int) -> TakenBytes | None:
        """Take bytes of the budget; None if too few are free."""
        taken = self._budget.take(nbytes, self._reserve) if self._budget is not None else None
        self.dropped += taken is None
        return taken

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        """As in ``Probe``."""
        bound = self.instrumentation.edits[number]
        assert isinstance(bound, BoundEdit)
        return bound.entries(start, stop)

    def pattern_positions(self, number: int, start: int, stop: int) -> NDArray[np.int64]:
        """As in ``Probe``."""
        return self.instrumentation.pattern_edits[number].positions(start, stop)

    def pattern_change(self, number: int, positions: NDArray[np.int64], keys: int) -> PatternChange:
        """As in ``Probe``."""
        return self.instrumentation.pattern_edits[number].change(positions, keys)

    def forget(self) -> None:
        """As in ``Probe``."""
        self._called.clear()

    def called(
        self, number: int, start: int, tokens: Sequence[int], values: NDArray[np.float32]
    ) -> Sequence[EditEntry]:
        """As in ``Probe``. If the function raises an exception, the values stay unchanged.

        ``error`` keeps the exception for the sequence's task.
        """
        bound = self.instrumentation.edits[number]
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
        """As in ``Probe``. Exceptions are as in ``called``."""
        heads, (_, _, keys) = self.instrumentation.pattern_edits[number], rows.shape
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
            reads = {name: self._reading(name, selected) for name in edit.reads}
            read = {name: part[np.isin(at, positions[new])] for name, (at, part) in reads.items()}
            context = CallContext(
                selected, self.number, positions[new], tokens[new].tolist(), self.prompt, self.state, self.piece, read
            )
            try:
                known.keep(positions[new], run_function(edit, values[new], context, checked))
            except PellucidError as error:
                self.error = error
                return None
        return known

    def _reading(self, name: str, selected: Selection) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The positions of ``selected`` in the step, and the values (n, ...) that its function reads."""
        parts = self._read[name, selected.tokens]
        values = np.concatenate([part.values for part in parts], 1)
        return parts[0].positions, values.reshape(len(values), *shape_of(parts[0].selected))

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
        recorded = self.instrumentation.recorded[selected]
        selected = recorded.selected
        if selected.point.rows == "sequences":
            return self._ascending(recorded, np.arange(1))
        tokens = selected.tokens.within(0, self.count)
        values = self._ascending(recorded, tokens)
        if len(selected.tokens.ranges) == 1:
            return values
        rows = np.searchsorted(tokens, selected.tokens.listed(self.count))
        return values[:, rows] if selected.point.kind in ("pattern", "scores") else values[rows]

    def _ascending(self, recorded: RecordedPart, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """The values at ascending positions ``tokens``, with the axes of ``array``."""
        selected = recorded.selected
        if selected.point.kind in ("pattern", "scores"):
            return self._pattern(recorded, tokens)
        if selected.point.kind == "state":
            states = np.full((len(tokens), selected.point.view.count), np.nan, np.float32)
            for position, state in self._states.get(recorded.places[0], {}).items():
                states[tokens == position] = state.values
            return states
        size = selected.point.view.count if selected.dims is None else len(selected.dims)
        values = np.full((len(tokens), len(selected.heads), size), np.nan, np.float32)
        for rows, block in _blocks_in(self._blocks.get(selected.point.rows, ()), tokens):
            values[rows] = part_of(recorded, block)
        typed: NDArray[Any] = values.view(selected.point.dtype)
        return typed if selected.point.heads else typed[:, 0]

    def _pattern(self, recorded: RecordedPart, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        selected = recorded.selected
        unseen = 0.0 if selected.point.kind == "pattern" else -np.inf
        blocks, mask = self._patterns.get(recorded.places[0], ()), selected.point.mask
        keys = self.source.count if mask and mask.cross and self.source else self.count
        pattern = np.full((len(selected.heads), len(tokens), keys), np.nan, np.float32)
        for rows, block in _blocks_in(blocks, tokens):
            length = min(block.shape[-1], keys)
            pattern[:, rows] = unseen
            pattern[:, rows, :length] = block[:, :, :length].swapaxes(0, 1)
        return pattern if selected.keys is None else pattern[:, :, selected.keys.listed(keys)]


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


def _blocks_in(
    blocks: Sequence[RecordedBlock], tokens: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the rows of ascending ``tokens`` that blocks have recorded, with their values."""
    for positions, values, _ in blocks:
        rows = slice(*np.searchsorted(tokens, [positions.start, positions.stop]))
        if rows.stop > rows.start:
            yield rows, values[tokens[rows] - positions.start]
