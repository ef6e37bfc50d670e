"""The engine: one thread that repeats steps for all requests, while there are any.

    schedule → forward → take

Everything that runs the model is a task. ``submit`` hands it over and returns a `Run`, by which its results are read.
The thread owns the scheduler, the tasks and their pages; others only put messages into its inbox, which waits for
nothing, so that a run that is dropped may say so even from the garbage collector. A task whose results are not read
pauses after a few of them. An error in a task ends it and no other.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from pellucid import pipeline
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.pace import Pace
from pellucid.engine.scheduler import SHORT, Job, JobTooLarge, Scheduler
from pellucid.errors import DeadlinePassed, InvalidRequest, QueueFull
from pellucid.pipeline import Scheduled, Task
from pellucid.runtime.sequence import CachedSequence
from pellucid.util.checks import real, whole

T = TypeVar("T")
AHEAD = 16
"""Results that a task may be ahead of its reader. They hold the logits of their tokens."""
MOST_PRIORITY, LONGEST = 100, 1e9
TARGET = 0.15
"""Seconds that a step takes at most, if it can be helped, while it reads prompts beside sequences that make text."""


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


class _Run(Job):
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
    def seconds_left(self) -> float:
        """Until its deadline."""
        return math.inf if self.how.deadline is None else self.came + self.how.deadline - time.monotonic()

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

    def __init__(self, job: _Run, inbox: SimpleQueue[Any]) -> None:
        self._job, self._inbox, self._reading = job, inbox, False
        self.close = weakref.finalize(self, inbox.put, ("close", job))

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
            if self._job.paused and not self._job.is_ahead:
                self._inbox.put(("read", self._job))


class Engine:
    """Runs tasks on a `ModelRunner`, in the same steps.

    ``target`` is how many seconds a step may take while it reads prompts beside sequences that make text. At most
    ``queue`` tasks may wait for their first step (None: any number).
    """

    def __init__(self, runner: ModelRunner, target: float = TARGET, queue: int | None = None) -> None:
        self.runner, self.pace = runner, Pace(target)
        self._scheduler = Scheduler(runner, runner.limits, self.pace)
        self._inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._jobs: dict[Task[Any], _Run] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._queue, self._waiting = queue, 0

    def submit(
        self,
        task: Task[T],
        how: Admission = USUAL,
        *,
        ahead: int = AHEAD,
        deliver: Callable[[T], object] | None = None,
    ) -> Run[T]:
        """Start a task. It pauses if its reader has ``ahead`` results to read.

        ``deliver`` is called with each result in the engine's thread, and must be quick; the `Run` then has no results
        and the task never pauses.

        Raises:
            InvalidRequest: the engine is closed.
            QueueFull: too many tasks wait.
        """
        job = _Run(task, how, ahead, deliver)
        with self._lock:
            if self._closed:
                raise InvalidRequest("the model is closed: load it again")
            if self._queue is not None and self._waiting >= self._queue:
                raise QueueFull(f"{self._waiting:,} requests wait, as many as may: ask again later")
            self._waiting += 1
            self._inbox.put(("submit", job))
            if self._thread is None or not self._thread.is_alive():  # a fork leaves a dead one behind
                self._thread = threading.Thread(target=self._work, name="pellucid-engine", daemon=True)
                self._thread.start()
        return Run(job, self._inbox)

    def run(self, task: Task[T], how: Admission = USUAL, *, ahead: int = AHEAD) -> Iterator[T]:
        """Start a task at the first iteration, and yield its results. It ends with the iteration."""
        with closing(self.submit(task, how, ahead=ahead)) as results:
            yield from results

    def settle(self) -> None:
        """Wait until everything has run that can: what is left waits for its readers."""
        done = threading.Event()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                return
            self._inbox.put(("settle", done))
        done.wait()

    def close(self) -> None:
        """End all tasks, each with an error, and the thread."""
        with self._lock:
            self._closed, thread = True, self._thread
            self._inbox.put(("stop", None))
        if thread is not None:
            thread.join()

    @property
    def waiting(self) -> int:
        """How many tasks wait for their first step."""
        return self._waiting

    def _work(self) -> None:
        """The thread's life. An error that belongs to no task is a bug: it ends all of them, and no reader waits."""
        while True:
            try:
                self._loop()
                return
            except BaseException as error:
                for job in list(self._jobs.values()):
                    self._end(job, error)

    def _loop(self) -> None:
        """Hear messages and run steps until there is nothing left to do."""
        settled: list[threading.Event] = []
        while True:
            self._expire()
            idle = all(job.paused for job in self._scheduler)
            if idle:
                for event in settled:
                    event.set()
                settled.clear()
            if not len(self._scheduler):
                with self._lock:
                    if self._inbox.empty():
                        self._thread = None
                        return
            try:
                left = min((job.seconds_left for job in self._jobs.values()), default=math.inf)
                kind, about = self._inbox.get(block=idle, timeout=max(left, 0.0) if left < math.inf else None)
                if kind == "settle":
                    settled.append(about)
                else:
                    self._hear(kind, about)
            except Empty:
                if not idle:
                    self._step()

    def _expire(self) -> None:
        """End the tasks whose deadline has passed."""
        for job in [job for job in self._jobs.values() if job.seconds_left <= 0]:
            waited = "it waited for others" if job.waits else "it was running"
            self._end(job, DeadlinePassed(f"the request did not end within {job.how.deadline:g} s: {waited}"))

    def _no_longer_waits(self, job: _Run) -> None:
        if job.waits:
            job.waits = False
            with self._lock:
                self._waiting -= 1

    def _hear(self, kind: str, job: Any) -> None:
        """Act on a message."""
        if kind == "stop":
            for one in list(self._jobs.values()):
                self._end(one, InvalidRequest("the model was closed while the request ran"))
        elif kind == "submit":
            self._jobs[job.task] = job
            self._scheduler.add(job)
        elif job.ended:
            return
        elif kind == "close" or job.task.done:
            self._end(job)
        else:
            job.paused = job.is_ahead

    def _step(self) -> None:
        """One step of the model, for all jobs that can run."""
        try:
            scheduled = self._scheduler.schedule()
        except JobTooLarge as large:
            self._end(self._jobs[large.job.task], large.error)
            return
        for one in scheduled:
            self._no_longer_waits(self._jobs[one.task])
        start = time.perf_counter()
        try:
            for one, results in pipeline.step(self.runner, scheduled):
                if job := self._jobs.get(one.task):  # else another of its sequences has failed in this step
                    self._deliver(job, one.sequence, results)
        except BaseException as error:
            for task in {one.task for one in scheduled}:
                if job := self._jobs.get(task):
                    self._end(job, error)
            return
        self.pace.tell(*_counts(scheduled), time.perf_counter() - start)
        for task in dict.fromkeys(one.task for one in scheduled):
            job = self._jobs.get(task)
            if job is not None and task.done:
                self._end(job)

    def _deliver(self, job: _Run, sequence: CachedSequence, results: Iterator[Any]) -> None:
        """Compute the results of a task's sequence and hand them to the reader."""
        try:
            for result in results:
                if job.deliver:
                    job.deliver(result)
                    continue
                job.sent += 1
                job.put(result)
            # Not again, should it lose its pages.
            sequence.wanted = max(sequence.wanted, sequence.table.length)
        except BaseException as error:
            self._end(job, error)
            return
        if job.is_ahead:
            job.paused = True
            if not job.is_ahead:  # the reader has looked before
                self._inbox.put(("read", job))

    def _end(self, job: _Run, error: BaseException | None = None) -> None:
        """Take a job out, give its pages back, and tell its reader."""
        try:
            del self._jobs[job.task]
            self._no_longer_waits(job)
            self._scheduler.remove(job)
            job.task.close()
        finally:
            job.ended = True
            with suppress(RuntimeError):  # of an event loop that is closed
                job.put(_End(error))


def _counts(scheduled: list[Scheduled]) -> tuple[int, int]:
    """The number of rows of texts that are made in a step, and of tokens of prompts."""
    rows = prompts = 0
    for one in scheduled:
        tokens = len(one.chunk.tokens)
        if tokens <= SHORT and tokens == one.chunk.outputs:
            rows += tokens
        else:
            prompts += tokens
    return rows, prompts
