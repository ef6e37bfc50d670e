"""A task on its way: when it runs, its results, and the reader's side of both."""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from pellucid.engine.scheduler import Job
from pellucid.pipeline import Task
from pellucid.util.checks import real, whole

T = TypeVar("T")
MOST_PRIORITY, LONGEST = 100, 1e9


@dataclass(frozen=True)
class Admission:
    """When a task runs: those of higher ``priority`` come first, among equals those that came first.

    A task that has not ended ``deadline`` seconds after it came fails, whether it has waited or run.

    Raises:
        InvalidRequest: a value is out of range.
    """

    priority: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "priority", whole("priority", self.priority, -MOST_PRIORITY, MOST_PRIORITY))
        if self.deadline is not None:
            object.__setattr__(self, "deadline", real("deadline", self.deadline, 0.0, LONGEST, above=True))


USUAL = Admission()


class _End:
    """The last message to a reader: the task is done, or it has failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class RunningJob(Job):
    """A job with its results on the way to the reader. ``sent`` and ``read`` count them.

    There may be ``ahead`` of them on the way. ``deliver`` gets them at once instead; ``notify`` is called after each.
    """

    def __init__(
        self, task: Task[Any], how: Admission, ahead: int, deliver: Callable[[Any], object] | None
    ) -> None:
        super().__init__(task, how.priority)
        self.how, self.ahead, self.came = how, ahead, time.monotonic()
        self.waits = True
        self.results: SimpleQueue[Any] = SimpleQueue()
        self.deliver = deliver
        self.notify: Callable[[], object] = _nobody
        self.sent = self.read = 0
        self.ended = False

    @property
    def is_ahead(self) -> bool:
        return self.sent - self.read >= self.ahead

    @property
    def waited(self) -> float:
        """Seconds since it came."""
        return time.monotonic() - self.came

    @property
    def seconds_left(self) -> float:
        """Until its deadline."""
        return math.inf if self.how.deadline is None else self.how.deadline - self.waited

    def end(self, error: BaseException | None) -> None:
        """Tell the reader that there is nothing more."""
        self.ended = True
        with suppress(RuntimeError):  # of an event loop that is closed
            self.put(_End(error))

    def put(self, result: Any) -> None:
        """Give the reader a result."""
        self.results.put(result)
        self.notify()


def _nobody() -> None:
    """Nobody waits."""


class Run(Generic[T]):
    """The results of a task, in order, as they come. ``close`` ends the task; so does dropping this object.

    Raises: what the task raises.
    """

    def __init__(self, job: RunningJob, inbox: SimpleQueue[Any]) -> None:
        self._job, self._inbox, self._reading = job, inbox, False
        self.close = weakref.finalize(self, _close, inbox, job)

    def __iter__(self) -> Run[T]:
        return self

    def __next__(self) -> T:
        self._acknowledge()
        return self._received(self._job.results.get())

    async def stream(self) -> AsyncGenerator[T, None]:
        """The results for an event loop, which has other things to do. The task ends with the iteration."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        self._job.notify = partial(loop.call_soon_threadsafe, ready.set)
        try:
            while True:
                ready.clear()
                self._acknowledge()
                while not self._job.results.empty():
                    try:
                        result = self._received(self._job.results.get())
                    except StopIteration:
                        return
                    yield result
                    self._acknowledge()
                await ready.wait()
        finally:
            self._job.notify = _nobody
            self.close()

    def _received(self, result: Any) -> T:
        """A result that has been read. Raises StopIteration at the end, or what the task has raised."""
        if isinstance(result, _End):
            self._job.results.put(_End(None))
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
                self._inbox.put(("read", self._job))


def _close(inbox: SimpleQueue[Any], job: RunningJob) -> None:
    """Ask the engine to end a job."""
    if not job.ended:
        inbox.put(("close", job))
