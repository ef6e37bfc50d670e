"""The engine: one thread that repeats steps for all requests, while there are any.

    schedule → forward → take

Everything that runs the model is a task. ``submit`` hands it over and returns a `Run`, by which its results are read.
The thread owns the scheduler, the tasks and their pages; others only put messages into its inbox, which waits for
nothing, so that a run that is dropped may say so even from the garbage collector. A task whose results are not read
pauses after a few of them. An error in a task ends it and no other.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pellucid import pipeline
from pellucid.engine.draft import DraftModel
from pellucid.engine.job import USUAL, Admission, RunningJob
from pellucid.engine.messages import Abort, BetweenSteps, Message, Ready, Resume, Settle, Stop, Submit
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.pace import Pace, counts
from pellucid.engine.reading import ReadingTask
from pellucid.engine.run import End, Run, copied, hand_over
from pellucid.engine.scheduler import JobTooLarge, Scheduler
from pellucid.errors import DeadlinePassed, InvalidRequest, KernelError, QueueFull
from pellucid.pipeline import Scheduled, Task, Wait
from pellucid.runtime.executor import FORKED
from pellucid.runtime.memory import give_back_heap
from pellucid.runtime.sequence import CachedSequence

T = TypeVar("T")
AHEAD = 16
"""Results that a task may be ahead of its reader."""
REST = 0.5
"""Seconds without a task after which the thread ends and gives memory back."""
TARGET = 0.15
"""Seconds that a step takes at most, if it can be helped, while it reads prompts beside sequences that make text."""


class Engine:
    """Runs tasks on a `ModelRunner`, in the same steps.

    ``target`` is how many seconds a step may take while it reads prompts beside sequences that make text. ``draft``
    proposes tokens for texts.
    """

    def __init__(self, runner: ModelRunner, target: float = TARGET, draft: DraftModel | None = None) -> None:
        self.runner, self.cache, self.pace, self.draft = runner, runner.cache, Pace(target), draft
        self._scheduler = Scheduler(runner.cache, runner.limits, self.pace)
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._jobs: dict[Task[Any], RunningJob] = {}
        self._timed: set[RunningJob] = set()  # jobs with a deadline
        self._results: list[tuple[RunningJob, Any]] = []
        """What readers get when the next step begins, which leaves the interpreter to them."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._queue: int | None = None
        self._waiting = 0
        self.steps, self.step_seconds = 0, 0.0
        self._settled: list[threading.Event] = []
        self._process = os.getpid()

    def submit(
        self,
        task: Task[Any],
        how: Admission = USUAL,
        *,
        ahead: int = AHEAD,
        deliver: Callable[[Any], object] | None = None,
        convert: Callable[[Any], Any] | None = None,
    ) -> Run[Any]:
        """Start a task. It pauses if its reader has ``ahead`` results to read.

        Both functions are called with each result in the engine's thread, and must be quick. The reader gets what
        ``convert`` returns. With ``deliver`` the `Run` has no results and the task never pauses.

        Raises:
            InvalidRequest: the engine is closed.
            QueueFull: too many tasks wait.
        """
        job = RunningJob(task, how, ahead, deliver, convert)
        run: Run[Any] = Run(job, self._inbox)
        self._refuse_here()
        with self._lock:
            if self._closed:
                raise InvalidRequest("the model is closed: load it again")
            if self._queue is not None and self._waiting >= self._queue:
                raise QueueFull(f"{self._waiting:,} requests wait, as many as may: ask again later")
            self._start()
            self._waiting += 1
            self._inbox.put(Submit(job))
        return run

    def _start(self) -> None:
        """Start the thread, if it does not run. The caller holds the lock."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="pellucid-engine", daemon=True)
            thread.start()
            self._thread = thread

    def _refuse_here(self) -> None:
        """Refuse a call where it would wait for itself, or for a thread that is not there."""
        if os.getpid() != self._process:
            raise InvalidRequest(FORKED)
        if threading.current_thread() is self._thread:
            raise InvalidRequest(
                "a sampler step asks the model that runs it, which would wait for itself: use a second model"
            )

    def run(self, task: Task[T], how: Admission = USUAL, *, ahead: int = AHEAD) -> Iterator[T]:
        """Start a task at the first iteration, and yield its results. It ends with the iteration."""
        with closing(self.submit(task, how, ahead=ahead)) as results:
            yield from results

    def limit_queue(self, queue: int | None) -> None:
        """At most so many tasks may wait for their first step from now on (None, as at first: any number)."""
        self._queue = queue

    def between_steps(self, function: Callable[[], object]) -> bool:
        """Call a function in the engine's thread, before its next step; False if it is closed. It must not raise."""
        with self._lock:
            if self._closed:
                return False
            self._start()
            self._inbox.put(BetweenSteps(function))
        return True

    def settle(self) -> None:
        """Wait until everything has run that can: what is left waits for its readers."""
        self._refuse_here()
        done = threading.Event()
        with self._lock:
            if self._thread is None:
                return
            self._inbox.put(Settle(done))
        done.wait()

    def close(self) -> None:
        """End all tasks, each with an error, and the thread. In the child of a fork there is nothing to end."""
        if os.getpid() != self._process:
            return
        self._refuse_here()
        with self._lock:
            self._closed, thread = True, self._thread
            self._inbox.put(Stop())
        if thread is not None:
            thread.join()

    @property
    def waiting(self) -> int:
        """How many tasks wait for their first step."""
        return self._waiting

    @property
    def _draft_seconds(self) -> float:
        """What the draft model has taken: it works while a step's results are delivered, but is no part of the step."""
        return self.draft.seconds if self.draft else 0.0

    @property
    def running(self) -> int:
        """How many tasks have had their first step."""
        return max(len(self._jobs) - self._waiting, 0)

    @property
    def preemptions(self) -> int:
        """How often a task has lost its pages to another."""
        return self._scheduler.preemptions

    @property
    def pages_in_use(self) -> int:
        """Pages that tasks have; those that only the prefix cache has are free for them."""
        jobs = list(self._jobs.values())
        return self.cache.pages_of(one.table for job in jobs for one in list(job.task.texts()))

    def _work(self) -> None:
        """The thread's life. An error that belongs to no task is a bug: it ends all of them, and no reader waits."""
        self.runner.executor.placement.sit(0)
        while True:
            try:
                self._loop()
                return
            except BaseException as error:
                for job in list(self._jobs.values()):
                    self._end(job, copied(error))

    def _loop(self) -> None:
        """Hear messages and run steps until there is nothing left to do."""
        while True:
            self._expire()
            idle = all(job.paused for job in self._scheduler)
            if idle:
                self._hand_over()
                for event in self._settled:
                    event.set()
                self._settled.clear()
            resting = not len(self._scheduler)
            patience = (0.0 if self._closed else REST) if resting else math.inf
            if self._heard(idle, patience):
                continue
            if not idle:
                self._step()
            elif resting:
                self.cache.trim()
                give_back_heap()
                with self._lock:
                    if self._inbox.empty():
                        self._thread = None
                        return

    def _heard(self, idle: bool, patience: float) -> bool:
        """Act on the next message, if there is one; if ``idle``, wait for it until the next deadline.

        Wait no longer than ``patience`` seconds.
        """
        if not idle and self._inbox.empty():
            return False
        left = min((job.seconds_left for job in self._timed), default=patience)
        try:
            self._hear(self._inbox.get(block=idle, timeout=max(left, 0.0) if left < math.inf else None))
            return True
        except Empty:
            return False

    def _expire(self) -> None:
        """End the tasks whose deadline has passed."""
        for job in [job for job in self._timed if job.seconds_left <= 0]:
            waited = "it waited for others" if job.waits else "it was running"
            self._end(job, DeadlinePassed(f"the request did not end within {job.how.deadline:g} s: {waited}"))

    def _no_longer_waits(self, job: RunningJob) -> None:
        if job.waits:
            job.waits = False
            with self._lock:
                self._waiting -= 1

    def _hear(self, message: Message) -> None:
        """Act on a message."""
        match message:
            case Submit(job):
                self._enter(job)
            case Abort(job) if not job.ended:
                self._end(job)
            case Resume(job) if not job.ended and job.task.done:
                self._end(job)
            case Resume(job) if not job.ended:
                job.paused = job.is_ahead
            case Ready(job, sequence, results):
                self._go_on(job, sequence, results)
            case BetweenSteps(function):
                function()
            case Settle(event):
                self._settled.append(event)
            case Stop():
                for job in list(self._jobs.values()):
                    self._end(job, InvalidRequest("the model was closed while the request ran"))

    def _enter(self, job: RunningJob) -> None:
        """A job begins, unless its task runs already."""
        if job.task in self._jobs:
            self._no_longer_waits(job)
            self._tell_end(job, InvalidRequest("this task runs already: make another"))
            return
        self._jobs[job.task] = job
        if job.how.deadline is not None:
            self._timed.add(job)
        self._scheduler.add(job)
        if job.task.done:
            self._end(job)

    def _step(self) -> None:
        """One step of the model, for all jobs that can run, after the turn of a reading."""
        if (reading := self._scheduler.next_reading()) is not None:
            self._read(self._jobs[reading.task])
            return
        scheduled = list[Scheduled]()
        # Jobs that go on without a step, and may free pages then.
        waiting = any(job.waiting or isinstance(job.task, ReadingTask) for job in self._jobs.values())
        try:
            scheduled = self._scheduler.schedule()
        except JobTooLarge as large:
            if not waiting:  # else another one may have the pages
                self._end(self._jobs[large.job.task], large.error)
                return
        if not scheduled and (reading := self._scheduler.next_reading(alone=True)) is not None:
            self._read(self._jobs[reading.task])
            return
        if not scheduled and waiting:
            self._hand_over()
            self._heard(True, math.inf)
            return
        if not scheduled:
            stuck = next(job for job in self._scheduler if not job.paused)
            self._end(
                self._jobs[stuck.task],
                KernelError("a task is not done, but has nothing to read: a bug of the task"),
            )
            return
        for one in scheduled:
            self._no_longer_waits(self._jobs[one.task])
        self._hand_over()
        start, drafted = time.perf_counter(), self._draft_seconds
        try:
            for one, results in pipeline.step(self.runner, scheduled):
                if len(one.chunk.tokens) > one.chunk.outputs and not (
                    one.sequence.whole or one.sequence.private
                ):
                    self.cache.keep_prefix(one.sequence.table, one.sequence.tokens)
                if job := self._jobs.get(one.task):  # else another of its sequences has failed in this step
                    self._deliver(job, one.sequence, results)
        except BaseException as error:
            for task in {one.task for one in scheduled}:
                if job := self._jobs.get(task):
                    self._end(job, copied(error))
            return
        seconds = time.perf_counter() - start - (self._draft_seconds - drafted)
        self.steps, self.step_seconds = self.steps + 1, self.step_seconds + seconds
        self.pace.tell(*counts(scheduled), seconds)
        self._scheduler.charge(seconds)
        for task in dict.fromkeys(one.task for one in scheduled):
            job = self._jobs.get(task)
            if job is not None and task.done:
                self._end(job)

    def _read(self, job: RunningJob) -> None:
        """A turn of a reading."""
        assert isinstance(job.task, ReadingTask)
        self._no_longer_waits(job)
        self._hand_over()
        start = time.perf_counter()
        self._deliver(job, None, job.task.turn())
        self._scheduler.charge_reading(job, time.perf_counter() - start)
        if not job.ended and job.task.done:
            self._end(job)

    def _deliver(self, job: RunningJob, sequence: CachedSequence | None, results: Iterator[Any]) -> None:
        """Compute results of a task and hand them to the reader; of a ``sequence``, if it is no reading."""
        try:
            for result in results:
                if isinstance(result, Wait):
                    job.waiting += 1
                    ready = Ready(job, sequence, results)
                    result.job.add_done_callback(lambda _, ready=ready: self._inbox.put(ready))  # type: ignore[misc]
                    return
                if job.deliver:
                    job.deliver(result)
                    continue
                job.sent += 1
                self._results.append((job, job.convert(result) if job.convert else result))
            if sequence is not None:  # not again, should it lose its pages
                sequence.wanted = max(sequence.wanted, sequence.table.length)
        except BaseException as error:
            self._end(job, error)
            return
        if job.is_ahead:
            job.paused = True
            if not job.is_ahead:  # the reader has looked before
                self._inbox.put(Resume(job))

    def _go_on(self, job: RunningJob, sequence: CachedSequence | None, results: Iterator[Any]) -> None:
        """Continue with the results of a sequence that has waited for another thread."""
        job.waiting -= 1
        if not job.ended:
            self._deliver(job, sequence, results)
        if not job.ended and job.task.done:
            self._end(job)

    def _end(self, job: RunningJob, error: BaseException | None = None) -> None:
        """Take a job out, give its pages back, and tell its reader."""
        self._timed.discard(job)
        try:
            del self._jobs[job.task]
            self._no_longer_waits(job)
            self._scheduler.remove(job)
            job.task.close()
        except BaseException as failure:  # whatever it is, the reader hears that the task has ended
            error = error or failure
        self._tell_end(job, error)

    def _tell_end(self, job: RunningJob, error: BaseException | None) -> None:
        """Tell a reader that there is nothing more."""
        job.ended = True
        self._results.append((job, End(error)))

    def _hand_over(self) -> None:
        """Give the readers their results.

        They run as soon as the interpreter is free: while the next step computes, or while the engine waits. Earlier
        they would only wait for it.
        """
        results, self._results = self._results, []
        for job in hand_over(results):
            if not job.ended:
                self._inbox.put(Abort(job))
