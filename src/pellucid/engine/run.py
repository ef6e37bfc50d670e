"""A task on its way: when it runs, its results, and the reader's side of both."""

from __future__ import annotations

import copy
import weakref
from collections.abc import AsyncGenerator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pellucid.engine.job import RunningJob
from pellucid.engine.messages import Abort, Message, Resume

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class End:
    """The last message to a reader: the task is done, or it has failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def hand_over(results: Sequence[tuple[RunningJob, Any]]) -> list[RunningJob]:
    """Give readers their results, and wake those in event loops, each loop once.

    Returns the jobs whose readers are gone with their loops.
    """
    waiting: dict[asyncio.AbstractEventLoop, dict[RunningJob, asyncio.Future[None]]] = {}
    for job, result in results:
        job.results.put(result)
        if reader := job.reader:
            waiting.setdefault(reader.get_loop(), {})[job] = reader
    gone = list[RunningJob]()
    for loop, readers in waiting.items():
        try:
            loop.call_soon_threadsafe(_wake, list(readers.values()))
        except RuntimeError:  # the loop is closed
            gone += readers
    return gone


def _wake(readers: Sequence[asyncio.Future[None]]) -> None:
    for reader in readers:
        if not reader.done():
            reader.set_result(None)


class Run(Generic[T]):
    """The results of a task, in order, as they come. ``close`` ends the task; so does dropping this object.

    Raises: what the task raises.
    """

    def __init__(self, job: RunningJob, inbox: SimpleQueue[Message]) -> None:
        self._job, self._inbox, self._reading = job, inbox, False
        self.close = weakref.finalize(self, _close, inbox, job)

    def __iter__(self) -> Run[T]:
        return self

    def __next__(self) -> T:
        self._acknowledge()
        return self._received(self._job.results.get())

    async def stream(self) -> AsyncGenerator[T, None]:
        """The results for an event loop, which has other things to do. The task ends with the iteration."""
        import asyncio  # takes a while, and most runs need none

        loop, job = asyncio.get_running_loop(), self._job
        try:
            while True:
                # Before the look at the results: what comes after it wakes this reader.
                job.reader = ready = loop.create_future()
                self._acknowledge()
                while not job.results.empty():
                    try:
                        result = self._received(job.results.get())
                    except StopIteration:
                        return
                    yield result
                    self._acknowledge()
                await ready
        finally:
            job.reader = None
            self.close()

    def _received(self, result: Any) -> T:
        """A result that has been read. Raises StopIteration at the end, or what the task has raised."""
        if isinstance(result, End):
            self._job.results.put(End(None))
            self.close.detach()
            if result.error is not None:
                raise result.error
            raise StopIteration
        self._reading = True
        return result  # type: ignore[no-any-return]

    def _acknowledge(self) -> None:
        """The reader has done what it does with the last result."""
        if self._reading:
            self._reading = False
            self._job.read += 1
            if self._job.paused and not self._job.is_ahead and not self._job.ended:
                self._inbox.put(Resume(self._job))


def _close(inbox: SimpleQueue[Message], job: RunningJob) -> None:
    """Ask the engine to end a job."""
    if not job.ended:
        inbox.put(Abort(job))


def copied(error: BaseException) -> BaseException:
    """An error for one of several readers: each raises its own, because raising adds to it."""
    try:
        made = copy.copy(error)
    except Exception:
        return error
    made.__cause__ = error
    return made
