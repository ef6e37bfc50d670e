"""The recorder of a sequence: it collects blocks of values from the steps, and builds arrays from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, PellucidError
from pellucid.errors.messages import brief, shown
from pellucid.plan.watched import PatternTap, Watch
from pellucid.runtime.batch import EditEntry, PatternEntry
from pellucid.trace.budget import ReservedBytes, TakenBytes, TraceBudget
from pellucid.trace.edits import rows_of, shape_of
from pellucid.trace.outputs import array_of
from pellucid.trace.recording import PlacedPart, Recording, entries_of, part_of
from pellucid.trace.selection import Selected

SOME = 3  # maximum number of edits that a message names


class RecordedBlock(NamedTuple):
    """Values of a step at ``positions``, (n, ...). ``room`` are their bytes of the trace's budget."""

    positions: range
    values: NDArray[np.float32]
    room: TakenBytes


class SequenceProbe:
    """Records the values of one sequence, and applies edits to them.

    Each block takes bytes of ``budget`` (None: no block is kept), first from the bytes that ``reserve`` holds.
    ``error`` is the exception that an edit's function raised. ``tokens`` returns the tokens that the sequence has read,
    and ``outputs`` holds the generated tokens. ``told`` is called with every block, including blocks that are not kept.
    ``dropped`` counts the blocks that did not fit into the budget.
    """

    def __init__(
        self, recording: Recording, budget: TraceBudget | None, reserve: ReservedBytes | None = None
    ) -> None:
        self.recording, self._budget, self._reserve = recording, budget, reserve
        self.told: Callable[..., object] | None = None
        self.error: BaseException | None = None
        self.dropped = 0
        self.tokens: Callable[[], Sequence[int]] = tuple
        self.outputs: Any = None
        self._blocks: dict[str, list[RecordedBlock]] = {}
        self._patterns: dict[int, list[RecordedBlock]] = {}
        self._states: dict[int, dict[int, RecordedBlock]] = {}

    @property
    def watch(self) -> Watch:
        """As in ``Probe``."""
        return self.recording.watch

    @property
    def uncacheable(self) -> bool:
        """As in ``Probe``."""
        return bool(self.recording.edits or self.recording.pattern_edits)

    @property
    def edited(self) -> str:
        """As in ``SequenceWatch``."""
        names = list(dict.fromkeys(one.where for one in self.recording.reaches))
        more = f" and {len(names) - SOME:,} more" if len(names) > SOME else ""
        return ", ".join(names[:SOME]) + more

    @property
    def closed(self) -> bool:
        """As in ``SequenceWatch``."""
        return False

    @property
    def first_recorded(self) -> int | None:
        """As in ``Probe``."""
        return self.recording.tokens.start if self.recording.placed else None

    def follow(self, other: SequenceProbe) -> None:
        """Continue after the tokens that ``other`` has recorded."""
        self._blocks = {rows: list(blocks) for rows, blocks in other._blocks.items()}
        self._patterns = {number: list(blocks) for number, blocks in other._patterns.items()}
        self._states = {number: dict(states) for number, states in other._states.items()}

    def positions(self, start: int, stop: int) -> range:
        """As in ``Probe``."""
        tokens = self.recording.tokens
        low = min(max(start, tokens.start), stop)
        return range(low, max(low, min(stop, tokens.stop)))

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        if self.told is not None:
            self.told(rows, positions, values)
        self._put(self._blocks.setdefault(rows, []), positions, values)

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Probe``. The pattern is recorded after its edits."""
        first = 0
        for tap in self.recording.watch.patterns:
            if tap.block == block:
                self._change(tap, positions, rows[:, first : first + tap.count])
                first += tap.count
        if self.told is not None:
            self.told(block, positions, rows)
        self._put(self._patterns.setdefault(block, []), positions, rows)

    def _change(self, tap: PatternTap, positions: range, rows: NDArray[np.float32]) -> None:
        for one in self.recording.pattern_edits:
            if tap.raw or one.operation != tap.operation:
                continue
            for entry in one.entries(positions.start, positions.stop):
                head = one.first + entry.head
                if tap.first <= head < tap.first + tap.count:
                    row = rows[entry.position - positions.start, head - tap.first]
                    seen = row > 0
                    row *= np.float32(entry.factor)
                    if entry.values is not None:
                        row[seen] += entry.values[: len(row)][seen]

    def take_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        states, one = self._states.setdefault(number, {}), range(position, position + 1)
        states.pop(position, None)
        if room := self._room(values.nbytes):
            states[position] = RecordedBlock(one, values.copy(), room)

    def _put(self, blocks: list[RecordedBlock], positions: range, values: NDArray[np.float32]) -> None:
        """Add a block. It replaces earlier values of its positions: a sequence that lost its pages reads them again."""
        if blocks and blocks[-1].positions.stop > positions.start:
            self._make_way(blocks, positions)
        if room := self._room(values.nbytes):
            blocks.append(RecordedBlock(positions, values, room))

    def _make_way(self, blocks: list[RecordedBlock], positions: range) -> None:
        """Remove some positions from blocks."""
        before = blocks[:]
        blocks.clear()
        while before:
            own, values, _ = block = before.pop(0)
            if own.stop <= positions.start or own.start >= positions.stop:
                blocks.append(block)
                continue
            rest = [range(own.start, positions.start), range(positions.stop, own.stop)]
            copies = [(part, values[part.start - own.start : part.stop - own.start].copy()) for part in rest]
            del block, _, values  # releases their bytes of the budget
            for part, copy in copies:
                if len(part) and (room := self._room(copy.nbytes)):
                    blocks.append(RecordedBlock(part, copy, room))

    def _room(self, nbytes: int) -> TakenBytes | None:
        room = self._budget.take(nbytes, self._reserve) if self._budget is not None else None
        self.dropped += room is None
        return room

    def entries(self, number: int, start: int, stop: int) -> Sequence[EditEntry]:
        """As in ``Probe``."""
        one = self.recording.edits[number]
        return entries_of(one, one.values, one.alike, one.edit.factor, start, stop)

    def pattern_entries(self, number: int, start: int, stop: int) -> Sequence[PatternEntry]:
        """As in ``Probe``."""
        return self.recording.pattern_edits[number].entries(start, stop)

    def changed(self, number: int, start: int, values: NDArray[np.float32]) -> Sequence[EditEntry]:
        """As in ``Probe``. If the function raises, ``error`` keeps the exception for the sequence's task.

        The values then stay unchanged.
        """
        one = self.recording.edits[number]
        tokens = one.selected.tokens
        low, high = max(start, tokens.start), min(start + len(values), tokens.stop)
        if low >= high or self.error is not None or one.edit.function is None:
            return []
        part = values[low - start : high - start].reshape(high - low, *shape_of(one.selected))
        part.flags.writeable = False  # only the function's return value changes it
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
        except BaseException as error:  # any exception ends only this request
            told = f"{type(error).__name__}: {shown(str(error))}"
            self.error = InvalidRequest(f"edit of {brief(one.edit.where)}: the function fails: {told}")
            self.error.__cause__ = error
            return []
        return [EditEntry(low + i, 0.0, made[0 if alike else i]) for i in range(high - low)]

    @property
    def count(self) -> int:
        """The number of tokens that the sequence has read."""
        return len(self.tokens())

    def array(self, selected: Selected) -> NDArray[Any]:
        """The values of a selected part: (T, ...) from the first selected position on; NaN at unrecorded positions.

        Patterns and scores are (heads, T, T'), from query to key.
        """
        if selected.point.kind == "output":
            return array_of(selected.name, self.outputs)
        placed = self.recording.placed[selected]
        tokens = range(min(selected.tokens.start, self.count), min(selected.tokens.stop, self.count))
        if selected.point.rows == "sequences":
            tokens = range(1)
        if selected.point.kind in ("pattern", "scores"):
            return self._pattern(placed, tokens)
        if selected.point.kind == "state":
            made = np.full((len(tokens), selected.point.view.count), np.nan, np.float32)
            for position, state in self._states.get(placed.places[0], {}).items():
                if position in tokens:
                    made[position - tokens.start] = state.values
            return made
        size = selected.point.view.count if selected.dims is None else len(selected.dims)
        made = np.full((len(tokens), len(selected.heads), size), np.nan, np.float32)
        for positions, block, _ in self._blocks.get(selected.point.rows, ()):
            low, high = max(positions.start, tokens.start), min(positions.stop, tokens.stop)
            if low >= high:
                continue
            rows = block[low - positions.start : high - positions.start]
            made[low - tokens.start : high - tokens.start] = part_of(placed, rows)
        whole: NDArray[Any] = made.view(np.int32) if selected.point.dtype == "int32" else made
        return whole if selected.point.heads else whole[:, 0]

    def _pattern(self, placed: PlacedPart, tokens: range) -> NDArray[np.float32]:
        selected = placed.selected
        nothing = 0.0 if selected.point.kind == "pattern" else -np.inf
        made = np.full((len(selected.heads), len(tokens), tokens.stop), np.nan, np.float32)
        for positions, block, _ in self._patterns.get(placed.places[0], ()):
            low, high = max(positions.start, tokens.start), min(positions.stop, tokens.stop)
            if low >= high:
                continue
            rows = block[low - positions.start : high - positions.start]
            length = min(rows.shape[-1], tokens.stop)
            own = made[:, low - tokens.start : high - tokens.start]
            own[...] = nothing
            own[:, :, :length] = rows[:, :, :length].swapaxes(0, 1)
        return made
