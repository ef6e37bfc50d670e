"""Readings: tasks without sequences that use the model between steps, such as profiles and projections.

A reading runs in turns, and a turn should take no longer than a step. The scheduler charges readings to their client,
so that a client with many readings slows other clients no more than a client that generates text.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

from pellucid.engine.task import ChunkOutput
from pellucid.runtime.cached_sequence import CachedSequence

T = TypeVar("T")


class ReadingTask(Generic[T]):
    """A task whose results come from the generator ``turns``.

    Each turn runs the generator to its next result, in the engine's thread.
    """

    def __init__(self, turns: Generator[T, None, None]) -> None:
        self._turns, self.done = turns, False

    def turn(self) -> Iterator[T]:
        """Run one turn, and yield its result. At the generator's end it yields no result, and the task is done."""
        for result in self._turns:
            yield result
            return
        self.done = True

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def runnable(self) -> Sequence[CachedSequence]:
        """No sequences."""
        return ()

    def sequences(self) -> Sequence[CachedSequence]:
        """No sequences."""
        return ()

    def process(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[Any]:
        """No results: a reading has no tokens."""
        return iter(())

    def close(self) -> None:
        """Close the generator, so that it releases its resources."""
        self._turns.close()
