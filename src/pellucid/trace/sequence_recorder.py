"""The recorder of a sequence: it passes the values of its steps to sinks, and applies edits to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.plan.passes import Watch
from pellucid.runtime.batch import EditEntry, PatternChange
from pellucid.trace.budget import ReservedBytes, TraceBudget
from pellucid.trace.edit_functions import EditFunctions
from pellucid.trace.edit_reach import EditReach
from pellucid.trace.instrumentation import BoundEdit, Instrumentation, part_of
from pellucid.trace.linear_probe import LinearProbe
from pellucid.trace.output_points import array_of
from pellucid.trace.selection import Selection
from pellucid.trace.sinks import MemorySink, Sink

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
