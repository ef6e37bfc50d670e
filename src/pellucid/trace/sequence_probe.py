"""The probe of a sequence: it collects blocks of values from the steps, and builds arrays from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import PellucidError
from pellucid.errors.messages import shown
from pellucid.plan.traced_plan import PatternTap, Watch
from pellucid.runtime.batch import EditEntry, PatternEntry
from pellucid.trace.budget import ReservedBytes, TakenBytes, TraceBudget
from pellucid.trace.edit_reach import EditReach
from pellucid.trace.edits import edit_error, rows_of, shape_of
from pellucid.trace.instrumentation import Instrumentation, RecordedPart, common, part_of
from pellucid.trace.output_points import array_of
from pellucid.trace.selection import Selection

SOME = 3
"""Maximum number of edits that a message names."""


class RecordedBlock(NamedTuple):
    """Values of a step at ``positions``, (n, ...), and their bytes of the trace's budget."""

    positions: range
    values: NDArray[np.float32]
    budget: TakenBytes


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

    @property
    def watch(self) -> Watch:
        """As in ``Probe``."""
        return self.instrumentation.watch

    @property
    def uncacheable(self) -> bool:
        """As in ``Probe``."""
        return bool(self.instrumentation.edits or self.instrumentation.pattern_edits)

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
        self.source = other.source
        self._blocks = {rows: list(blocks) for rows, blocks in other._blocks.items()}
        self._patterns = {number: list(blocks) for number, blocks in other._patterns.items()}
        self._states = {number: dict(states) for number, states in other._states.items()}

    def positions(self, start: int, stop: int) -> range:
        """As in ``Probe``."""
        tokens = self.instrumentation.tokens
        first = min(max(start, tokens.start), stop)
        return range(first, max(first, min(stop, tokens.stop)))

    def take(self, rows: str, positions: range, values: NDArray[np.float32]) -> None:
        """As in ``Probe``."""
        if self.notify is not None:
            self.notify(rows, positions, values)
        self._put(self._blocks.setdefault(rows, []), positions, values)

    def take_pattern(self, block: int, positions: range, rows: NDArray[np.float32]) -> None:
        """As in ``Probe``. The pattern is recorded after its edits."""
        first = 0
        for tap in self.instrumentation.watch.patterns:
            if tap.block == block:
                self._change(tap, positions, rows[:, first : first + tap.count])
                first += tap.count
        if self.notify is not None:
            self.notify(block, positions, rows)
        self._put(self._patterns.setdefault(block, []), positions, rows)

    def _change(self, tap: PatternTap, positions: range, rows: NDArray[np.float32]) -> None:
        for edit in self.instrumentation.pattern_edits:
            if tap.raw or edit.operation != tap.operation:
                continue
            for entry in edit.entries(positions.start, positions.stop, rows.shape[-1]):
                head = edit.first + entry.head
                if tap.first <= head < tap.first + tap.count:
                    row = rows[entry.position - positions.start, head - tap.first]
                    seen = row > 0
                    row *= np.float32(entry.factor)
                    if entry.values is not None:
                        row[seen] += entry.values[: len(row)][seen]

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
            copies = [
                (part, values[part.start - known.start : part.stop - known.start].copy()) for part in rest
            ]
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
        return self.instrumentation.edits[number].entries(start, stop)

    def pattern_entries(self, number: int, start: int, stop: int, keys: int) -> Sequence[PatternEntry]:
        """As in ``Probe``."""
        return self.instrumentation.pattern_edits[number].entries(start, stop, keys)

    def changed(self, number: int, start: int, values: NDArray[np.float32]) -> Sequence[EditEntry]:
        """As in ``Probe``. If the function raises an exception, the values stay unchanged.

        ``error`` keeps the exception for the sequence's task.
        """
        selected, edit = self.instrumentation.edits[number].selected, self.instrumentation.edits[number].edit
        positions = common(range(start, start + len(values)), selected.tokens)
        if not positions or self.error is not None or edit.function is None:
            return []
        part = values[positions.start - start : positions.stop - start]
        part = part.reshape(len(positions), *shape_of(selected))
        part.flags.writeable = False  # only the function's return value may change the values
        try:
            result = edit.function(part)
            if result is None:
                return []
            rows, broadcast = rows_of(selected, edit, result)
            if not broadcast and len(rows) != len(part):
                raise edit_error(
                    edit.where, f"the function returns {len(rows)} rows for {len(part)} positions"
                )
        except PellucidError as error:
            self.error = error
            return []
        except BaseException as error:  # any exception ends only this request
            message = f"{type(error).__name__}: {shown(str(error))}"
            self.error = edit_error(edit.where, f"the function fails: {message}")
            self.error.__cause__ = error
            return []
        return [EditEntry(position, 0.0, rows[0 if broadcast else i]) for i, position in enumerate(positions)]

    @property
    def count(self) -> int:
        """The number of tokens that the sequence has read."""
        return len(self.tokens())

    def array(self, selected: Selection) -> NDArray[Any]:
        """The values of a selected part: (T, ...) from the first selected position on; NaN at unrecorded positions.

        Patterns and scores are (heads, T, T'), from query to key.
        """
        if selected.point.of_source and self.source is not None:
            return self.source.array(selected)
        if selected.point.kind == "output":
            return array_of(selected.name, self.outputs)
        recorded = self.instrumentation.recorded[selected]
        tokens = range(min(selected.tokens.start, self.count), min(selected.tokens.stop, self.count))
        if selected.point.rows == "sequences":
            tokens = range(1)
        if selected.point.kind in ("pattern", "scores"):
            return self._pattern(recorded, tokens)
        if selected.point.kind == "state":
            states = np.full((len(tokens), selected.point.view.count), np.nan, np.float32)
            for position, state in self._states.get(recorded.places[0], {}).items():
                if position in tokens:
                    states[position - tokens.start] = state.values
            return states
        size = selected.point.view.count if selected.dims is None else len(selected.dims)
        values = np.full((len(tokens), len(selected.heads), size), np.nan, np.float32)
        for positions, block in _blocks_in(self._blocks.get(selected.point.rows, ()), tokens):
            values[positions.start - tokens.start : positions.stop - tokens.start] = part_of(recorded, block)
        typed: NDArray[Any] = values.view(selected.point.dtype)
        return typed if selected.point.heads else typed[:, 0]

    def _pattern(self, recorded: RecordedPart, tokens: range) -> NDArray[np.float32]:
        selected = recorded.selected
        unseen = 0.0 if selected.point.kind == "pattern" else -np.inf
        blocks, mask = self._patterns.get(recorded.places[0], ()), selected.point.mask
        keys = tokens.stop
        if mask is not None and not mask.causal:  # a query may see the tokens after it
            keys = max((values.shape[-1] for _, values, _ in blocks), default=keys)
        pattern = np.full((len(selected.heads), len(tokens), keys), np.nan, np.float32)
        for positions, block in _blocks_in(blocks, tokens):
            length = min(block.shape[-1], keys)
            rows = pattern[:, positions.start - tokens.start : positions.stop - tokens.start]
            rows[...] = unseen
            rows[:, :, :length] = block[:, :, :length].swapaxes(0, 1)
        return pattern


def _blocks_in(blocks: Sequence[RecordedBlock], tokens: range) -> Iterator[tuple[range, NDArray[np.float32]]]:
    """Yield the recorded positions within ``tokens``, with their rows."""
    for positions, values, _ in blocks:
        if shared := common(positions, tokens):
            yield shared, values[shared.start - positions.start : shared.stop - positions.start]
