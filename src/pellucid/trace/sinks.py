"""Sinks of recorded values: a recorder passes each step's blocks of values to the sinks of its sequence.

    recorder ─► sink    memory    `MemorySink`, for traces that are read after the run
                        stream    ``frames.TraceStream``, for traces that are read while the request runs
                        file      ``dataset/shard_recorder.py``
                        wire      ``cluster/remote_trace.py`` sends the frames of a stream

A sink is a function; the recorder calls it in the engine's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pellucid.trace.budget import ReservedBytes, TakenBytes, TraceBudget
from pellucid.trace.instrumentation import RecordedPart, part_of

Sink: TypeAlias = Callable[[Any, range, NDArray[np.float32]], object]
"""Receives the values that a step has recorded: their kind of rows ("tokens", …) or the number of their block of
patterns, their positions, and the block of values, (n, columns) or (n, heads, tokens)."""


class RecordedBlock(NamedTuple):
    """Values of a step at ``positions``, (n, ...), and their bytes of the trace's budget."""

    positions: range
    values: NDArray[np.float32]
    budget: TakenBytes


class MemorySink:
    """Keeps the recorded values of a sequence in memory.

    Each block takes bytes of ``budget``, first from the bytes that ``reserve`` holds. ``dropped`` counts the blocks
    that did not fit into the budget.
    """

    def __init__(self, budget: TraceBudget, reserve: ReservedBytes | None) -> None:
        self._budget, self._reserve = budget, reserve
        self.dropped = 0
        self._blocks: dict[str | int, list[RecordedBlock]] = {}
        self._states: dict[int, dict[int, RecordedBlock]] = {}

    def follow(self, other: MemorySink) -> None:
        """Hold also the values that ``other`` has recorded so far."""
        self._blocks = {what: list(blocks) for what, blocks in other._blocks.items()}
        self._states = {number: dict(states) for number, states in other._states.items()}

    def put(self, what: str | int, positions: range, values: NDArray[np.float32]) -> None:
        """Add a block, and remove earlier values of its positions, which a preempted sequence computes again."""
        blocks = self._blocks.setdefault(what, [])
        if blocks and blocks[-1].positions.stop > positions.start:
            self._remove(blocks, positions)
        if budget := self._take(values.nbytes):
            blocks.append(RecordedBlock(positions, values, budget))

    def put_state(self, number: int, position: int, values: NDArray[np.float32]) -> None:
        """Add a state of recurrent attention after a position."""
        states = self._states.setdefault(number, {})
        states.pop(position, None)
        if budget := self._take(values.nbytes):
            states[position] = RecordedBlock(range(position, position + 1), values.copy(), budget)

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
        taken = self._budget.take(nbytes, self._reserve)
        self.dropped += taken is None
        return taken

    def array(self, recorded: RecordedPart, tokens: NDArray[np.int64], keys: int) -> NDArray[Any]:
        """The values at ascending positions ``tokens``, (T, ...); NaN at positions that were not recorded.

        Patterns and scores are (heads, T, T'), from query to key, with ``keys`` keys.
        """
        selected = recorded.selected
        if selected.point.kind in ("pattern", "scores"):
            return self._pattern(recorded, tokens, keys)
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

    def _pattern(self, recorded: RecordedPart, tokens: NDArray[np.int64], keys: int) -> NDArray[np.float32]:
        selected = recorded.selected
        unseen = 0.0 if selected.point.kind == "pattern" else -np.inf
        blocks = self._blocks.get(recorded.places[0], ())
        pattern = np.full((len(selected.heads), len(tokens), keys), np.nan, np.float32)
        for rows, block in _blocks_in(blocks, tokens):
            length = min(block.shape[-1], keys)
            pattern[:, rows] = unseen
            pattern[:, rows, :length] = block[:, :, :length].swapaxes(0, 1)
        return pattern if selected.keys is None else pattern[:, :, selected.keys.listed(keys)]


def _blocks_in(
    blocks: Sequence[RecordedBlock], tokens: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the rows of ascending ``tokens`` that blocks have recorded, with their values."""
    for positions, values, _ in blocks:
        rows = slice(*np.searchsorted(tokens, [positions.start, positions.stop]))
        if rows.stop > rows.start:
            yield rows, values[tokens[rows] - positions.start]
