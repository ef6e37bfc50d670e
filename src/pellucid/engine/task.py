"""A task: any work that needs the model. ``tasks/`` has the kinds of tasks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.runtime.batch import Chunk
from pellucid.runtime.cached_sequence import CachedSequence

if TYPE_CHECKING:
    from concurrent.futures import Future

T_co = TypeVar("T_co", covariant=True)
ChunkOutput: TypeAlias = NDArray[np.float32]
"""The output of the model for a chunk: logits (R, V) of its last R tokens, or its sentence vector (1, D)."""


class Wait(Struct, frozen=True):
    """A marker among a task's results: the next result needs ``job``, which runs in another thread.

    For example, ``job`` computes the mask of a constraint.
    """

    job: Future[None]


class Task(Protocol[T_co]):
    """Work that needs the model. Its results have type T."""

    @property
    def done(self) -> bool:
        """True if the task needs no further step."""
        ...

    def begin(self, waited: float) -> None:
        """Prepare for the first step, ``waited`` seconds after the submission."""
        ...

    def runnable(self) -> Sequence[CachedSequence]:
        """The sequences that have tokens for the next step, in a stable order."""
        ...

    def sequences(self) -> Sequence[CachedSequence]:
        """All sequences that may have pages."""
        ...

    def process(self, sequence: CachedSequence, outputs: ChunkOutput, seconds: float) -> Iterator[T_co | Wait]:
        """Process the outputs of a sequence's tokens from a step of ``seconds`` seconds, and yield the results.

        ``outputs`` has no rows if the chunk requested none. After a `Wait` the engine iterates again when the job has
        ended. Until then the sequence has no tokens for a step.
        """
        ...

    def close(self) -> None:
        """Free the pages of all sequences. May be called at any time between steps."""
        ...


class ScheduledChunk(Struct, frozen=True):
    """The tokens of a task's sequence in a step."""

    task: Task[Any]
    sequence: CachedSequence
    chunk: Chunk


# Readings: tasks without sequences that use the model between steps, such as profiles and projections.
#
# A reading runs in turns, and a turn should take no longer than a step. The scheduler charges readings to their client,
# so that a client with many readings slows other clients no more than a client that generates text.

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
