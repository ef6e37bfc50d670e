"""The probe of a sequence: it collects blocks of values from the steps, and builds arrays from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import PellucidError
from pellucid.kernels.attention.tiles import SPAN
from pellucid.plan.traced_plan import Watch
from pellucid.runtime.batch import EditEntry, PatternChange
from pellucid.trace.budget import ReservedBytes, TakenBytes, TraceBudget
from pellucid.trace.calls import CallContext, CalledRows, run_function
from pellucid.trace.edit_reach import EditReach
from pellucid.trace.edits import Edit, edit_error, pattern_rows, rows_of, shape_of
from pellucid.trace.instrumentation import Instrumentation, RecordedPart, part_of
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.output_points import array_of
from pellucid.trace.positions import Positions
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
        self._called: dict[tuple[str, int], CalledRows] = {}
        self._read: dict[tuple[str, Positions], tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
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
        ends = [
            int(own[0]) + 1
            for edit in self.instrumentation.state_edits
            if len(own := edit.tokens.next(start))
        ]
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
        known = self._call(("state", number), selected, edit, at, own, state[None].copy(), checked)
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
        selected, edit = bound.selected, bound.edit
        positions = selected.tokens.within(start, start + len(values))
        part = values[positions - start].reshape(len(positions), *shape_of(selected))
        if bound.read:
            self._read[bound.read, selected.tokens] = positions, part
            return []
        own = np.asarray(tokens, np.int64)[positions - start]

        def checked(result: Any) -> NDArray[np.float32]:
            return rows_of(selected, edit, result)[0]

        known = self._call(("value", number), selected, edit, positions, own, part, checked)
        changed = ((int(at), known.of(int(at))) for at in positions) if known else ()
        return [EditEntry(at, 0.0, row) for at, row in changed if row is not None]

    def called_pattern(
        self,
        number: int,
        positions: NDArray[np.int64],
        tokens: NDArray[np.int64],
        rows: NDArray[np.float32],
    ) -> PatternChange | None:
        """As in ``Probe``. Exceptions are as in ``called``."""
        heads = self.instrumentation.pattern_edits[number]
        edit, selected = heads.edits[0].edit, heads.edits[0].selected

        def checked(result: Any) -> NDArray[np.float32]:
            made = pattern_rows(selected, edit, np.swapaxes(result, 0, 1) if np.ndim(result) == 3 else result)
            if made.shape[2] not in (1, rows.shape[2]):
                reason = f"the function returns values of shape {np.shape(result)} for {rows.shape}"
                raise edit_error(edit.where, reason)
            return np.broadcast_to(made.swapaxes(0, 1), (made.shape[1], *rows.shape[1:]))

        known = self._call(("pattern", number), selected, edit, positions, tokens, rows.copy(), checked)
        if known is None:
            return None
        padded = -(-rows.shape[2] // SPAN) * SPAN
        factors = np.zeros((len(positions), heads.count, padded), np.float32)
        addends = np.zeros_like(factors)
        for at, factor, addend in zip(positions, factors, addends):
            if (row := known.of(int(at))) is None:
                factor[...] = 1
            else:
                addend[:, : row.shape[-1]] = row[:, : rows.shape[2]]
        return PatternChange(positions, factors, addends)

    def _call(
        self,
        key: tuple[str, int],
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
            reads = {name: self._read[name, selected.tokens] for name in edit.reads}
            read = {name: part[np.isin(at, positions[new])] for name, (at, part) in reads.items()}
            context = CallContext(
                selected,
                self.number,
                positions[new],
                tokens[new].tolist(),
                self.prompt,
                self.state,
                self.piece,
                read,
            )
            try:
                known.keep(positions[new], run_function(edit, values[new], context, checked))
            except PellucidError as error:
                self.error = error
                return None
        return known

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
        """The values of a selected part: (T, ...) from the first selected position on; NaN at unrecorded positions.

        Patterns and scores are (heads, T, T'), from query to key.
        """
        if selected.point.of_source and self.source is not None:
            return self.source.array(selected)
        if selected.point.kind == "output":
            return array_of(selected.name, self.outputs)
        recorded = self.instrumentation.recorded[selected]
        selected = recorded.selected
        tokens = selected.tokens.within(0, self.count)
        if selected.point.rows == "sequences":
            tokens = np.arange(1)
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
        keys = int(tokens[-1]) + 1 if len(tokens) else 0
        if mask is not None and not mask.causal:  # a query may see the tokens after it
            keys = max((values.shape[-1] for _, values, _ in blocks), default=keys)
        pattern = np.full((len(selected.heads), len(tokens), keys), np.nan, np.float32)
        for rows, block in _blocks_in(blocks, tokens):
            length = min(block.shape[-1], keys)
            pattern[:, rows] = unseen
            pattern[:, rows, :length] = block[:, :, :length].swapaxes(0, 1)
        return pattern if selected.keys is None else pattern[:, :, selected.keys.within(0, keys)]


def _blocks_in(
    blocks: Sequence[RecordedBlock], tokens: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the rows of ascending ``tokens`` that blocks have recorded, with their values."""
    for positions, values, _ in blocks:
        rows = slice(*np.searchsorted(tokens, [positions.start, positions.stop]))
        if rows.stop > rows.start:
            yield rows, values[tokens[rows] - positions.start]
