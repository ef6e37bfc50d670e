"""Passes the results of a task to its reader. The reader can cancel the task."""

from __future__ import annotations

import copy
import weakref
from collections.abc import AsyncGenerator, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pellucid.engine.job import Job
from pellucid.engine.messages import Abort, Message, Resume
from pellucid.util.waits import get

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class End:
    """The last item in a reader's queue. ``error`` is None if the task succeeded."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def put_results(results: Sequence[tuple[Job, Any]]) -> list[Job]:
    """Put results into the readers' queues, and wake readers in event loops with one call for each loop.

    Returns the jobs whose event loop is closed, because nobody reads the results of these jobs.
    """
    waiting: dict[asyncio.AbstractEventLoop, dict[Job, asyncio.Future[None]]] = {}
    for job, result in results:
        job.results.put(result)
        if reader := job.reader:
            waiting.setdefault(reader.get_loop(), {})[job] = reader
    unread = list[Job]()
    for loop, readers in waiting.items():
        try:
            loop.call_soon_threadsafe(_wake, list(readers.values()))
        except RuntimeError:  # the loop is closed
            unread += readers
    return unread


def _wake(readers: Sequence[asyncio.Future[None]]) -> None:
    for reader in readers:
        if not reader.done():
            reader.set_result(None)


class Results(Generic[T]):
    """Iterator over the results of a task, in order. ``close`` cancels the task. Dropping this object also cancels it.

    The iteration raises the task's errors.
    """

    def __init__(self, job: Job, inbox: SimpleQueue[Message]) -> None:
        self._job, self._inbox, self._reading = job, inbox, False
        self.close = weakref.finalize(self, _close, inbox, job)

    def __iter__(self) -> Results[T]:
        return self

    def __next__(self) -> T:
        self._acknowledge()
        return self._received(get(self._job.results))

    async def stream(self) -> AsyncGenerator[T, None]:
        """Yield the results without blocking an event loop. The task ends when the iteration ends."""
        import asyncio  # slow to import, and most runs do not need it

        loop, job = asyncio.get_running_loop(), self._job
        try:
            while True:
                # The future is set before the queue is checked, so a result that arrives after the check wakes this
                # reader.
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
        """Return a result from the queue. Raises StopIteration at the end, or the task's error."""
        if isinstance(result, End):
            self._job.results.put(End(None))
            self.close.detach()
            if result.error is not None:
                raise result.error
            raise StopIteration
        self._reading = True
        return result  # type: ignore[no-any-return]

    def _acknowledge(self) -> None:
        """Count the last result as read, and resume the task if it paused for this reader."""
        if self._reading:
            self._reading = False
            self._job.read += 1
            if self._job.paused and not self._job.is_ahead and not self._job.ended:
                self._inbox.put(Resume(self._job))


def _close(inbox: SimpleQueue[Message], job: Job) -> None:
    """Ask the engine to abort a job."""
    if not job.ended:
        inbox.put(Abort(job))


def copied(error: BaseException) -> BaseException:
    """A copy of an error for one of several readers. Raising an error changes it, so each reader raises a copy."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__ = error
    return own
