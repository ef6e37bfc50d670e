"""A task that looks into the model between steps: profiles, projections. It reads no tokens and has no pages.

It runs in turns, each of which should take no longer than a step. The scheduler gives a client's readings their part of
the machine, so that readings in a loop slow the texts of other clients down no more than a text would.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Generic, TypeVar

from pellucid.pipeline import ChunkOutput
from pellucid.runtime.sequence import CachedSequence

T = TypeVar("T")


class ReadingTask(Generic[T]):
    """Yields what ``turns`` yields: each turn runs in the engine's thread, up to its next result."""

    def __init__(self, turns: Generator[T, None, None]) -> None:
        self._turns, self.done = turns, False

    def turn(self) -> Iterator[T]:
        """Run one turn, and yield its result; at the end nothing, and the task is done."""
        for result in self._turns:
            yield result
            return
        self.done = True

    def begin(self, waited: float) -> None:
        """As in ``Task``."""

    def sequences(self) -> Sequence[CachedSequence]:
        """None."""
        return ()

    def texts(self) -> Sequence[CachedSequence]:
        """None."""
        return ()

    def take(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[Any]:
        """Nothing: it has no tokens."""
        return iter(())

    def close(self) -> None:
        """End the generator, so that it gives back what it holds."""
        self._turns.close()
