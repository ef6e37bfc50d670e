"""The engine: one thread that runs steps for all requests until no request is left.

    schedule → forward → take

All work on the model is a task. ``submit`` passes a task to the thread and returns a `Run`, which yields its results.
The thread owns the scheduler, the tasks and their pages. Other threads only put messages into its inbox. This never
blocks, so even the garbage collector can cancel a run that was dropped. A task pauses when its reader falls a few
results behind. An error in a task ends only this task.
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
from pellucid.runtime.memory import release_heap
from pellucid.runtime.sequence import CachedSequence

T = TypeVar("T")
AHEAD = 16
"""Maximum number of unread results before a task pauses."""
REST = 0.5
"""Seconds without a task after which the thread ends and frees unused memory."""
TARGET = 0.15
"""Target duration in seconds of a step that mixes prefill and decode."""


class Engine:
    """Runs tasks together on a `ModelRunner`: a step may serve several tasks.

    ``target`` is the target duration in seconds of a step that mixes prefill and decode. ``draft`` proposes draft
    tokens.
    """

    def __init__(self, runner: ModelRunner, target: float = TARGET, draft: DraftModel | None = None) -> None:
        self.runner, self.cache, self.pace, self.draft = runner, runner.cache, Pace(target), draft
        self._scheduler = Scheduler(runner.cache, runner.limits, self.pace)
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._jobs: dict[Task[Any], RunningJob] = {}
        self._timed: set[RunningJob] = set()  # jobs with a deadline
        self._results: list[tuple[RunningJob, Any]] = []
        """Results that readers receive when the next step begins: the step's kernels run without the interpreter."""
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
        """Start a task. It pauses when ``ahead`` results are unread.

        The engine's thread calls ``convert`` and ``deliver`` with each result; both must be quick. The reader receives
        the return value of ``convert``. With ``deliver`` the `Run` yields no results and the task never pauses.

        Raises:
            InvalidRequest: the engine is closed.
            QueueFull: the queue is full.
        """
        job = RunningJob(task, how, ahead, deliver, convert)
        run: Run[Any] = Run(job, self._inbox)
        self._refuse_here()
        with self._lock:
            if self._closed:
                raise InvalidRequest("the model is closed: load it again")
            if self._queue is not None and self._waiting >= self._queue:
                raise QueueFull(f"the queue is full ({self._waiting:,}): retry later, or raise --queue")
            self._start()
            self._waiting += 1
            self._inbox.put(Submit(job))
        return run

    def _start(self) -> None:
        """Start the thread if it is not running. The caller holds the lock."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="pellucid-engine", daemon=True)
            thread.start()
            self._thread = thread

    def _refuse_here(self) -> None:
        """Refuse a call from the engine's thread, which would deadlock, or from a forked child, which has no thread."""
        if os.getpid() != self._process:
            raise InvalidRequest(FORKED)
        if threading.current_thread() is self._thread:
            raise InvalidRequest(
                "a sampler step asks the model that runs it, which would wait for itself: use a second model"
            )

    def run(self, task: Task[T], how: Admission = USUAL, *, ahead: int = AHEAD) -> Iterator[T]:
        """Start a task at the first iteration, and yield its results. The task ends when the iteration ends."""
        with closing(self.submit(task, how, ahead=ahead)) as results:
            yield from results

    def limit_queue(self, queue: int | None) -> None:
        """Limit the queue: at most ``queue`` tasks may wait for their first step (None, the default: no limit)."""
        self._queue = queue

    def between_steps(self, function: Callable[[], object]) -> bool:
        """Call ``function``, which must not raise, in the engine's thread before the next step; False if closed."""
        with self._lock:
            if self._closed:
                return False
            self._start()
            self._inbox.put(BetweenSteps(function))
        return True

    def settle(self) -> None:
        """Wait until no task can run: each remaining task waits for its reader."""
        self._refuse_here()
        done = threading.Event()
        with self._lock:
            if self._thread is None:
                return
            self._inbox.put(Settle(done))
        done.wait()

    def close(self) -> None:
        """End all tasks with an error, and stop the thread. Does nothing in a forked child."""
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
        """Number of tasks that wait for their first step."""
        return self._waiting

    @property
    def _draft_seconds(self) -> float:
        """Total seconds of the draft model, which runs while results are delivered. Step times exclude them."""
        return self.draft.seconds if self.draft else 0.0

    @property
    def running(self) -> int:
        """Number of tasks that have had their first step."""
        return max(len(self._jobs) - self._waiting, 0)

    @property
    def preemptions(self) -> int:
        """Number of preemptions: a task lost its pages to another task."""
        return self._scheduler.preemptions

    @property
    def pages_in_use(self) -> int:
        """Number of pages in block tables of tasks. Pages that only the prefix cache holds count as free."""
        jobs = list(self._jobs.values())
        return self.cache.pages_of(one.table for job in jobs for one in list(job.task.texts()))

    def _work(self) -> None:
        """The thread's main function. An error outside a task is a bug: it ends all tasks, so that no reader hangs."""
        self.runner.executor.placement.bind(0)
        while True:
            try:
                self._loop()
                return
            except BaseException as error:
                for job in list(self._jobs.values()):
                    self._end(job, copied(error))

    def _loop(self) -> None:
        """Handle messages and run steps until no task and no message is left."""
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
                release_heap()
                with self._lock:
                    if self._inbox.empty():
                        self._thread = None
                        return

    def _heard(self, idle: bool, patience: float) -> bool:
        """Handle the next message, if any. Returns True if a message was handled.

        If ``idle``, wait for a message until the next deadline, or for ``patience`` seconds without deadlines.
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
        """Handle a message."""
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
        """Add a job, unless its task runs already."""
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
        """Run one step of the model for all jobs that can run, or one turn of a reading if its turn comes first."""
        if (reading := self._scheduler.next_reading()) is not None:
            self._read(self._jobs[reading.task])
            return
        scheduled = list[Scheduled]()
        # Jobs that advance without a step, and may then free pages.
        waiting = any(job.waiting or isinstance(job.task, ReadingTask) for job in self._jobs.values())
        try:
            scheduled = self._scheduler.schedule()
        except JobTooLarge as large:
            if not waiting:  # else another job may free the pages
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
                    one.sequence.in_one_step or one.sequence.uncacheable
                ):
                    self.cache.keep_prefix(one.sequence.table, one.sequence.tokens)
                if job := self._jobs.get(one.task):  # else another sequence of the task failed in this step
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
        """Run one turn of a reading."""
        assert isinstance(job.task, ReadingTask)
        self._no_longer_waits(job)
        self._hand_over()
        start = time.perf_counter()
        self._deliver(job, None, job.task.turn())
        self._scheduler.charge_reading(job, time.perf_counter() - start)
        if not job.ended and job.task.done:
            self._end(job)

    def _deliver(self, job: RunningJob, sequence: CachedSequence | None, results: Iterator[Any]) -> None:
        """Compute results of a task and queue them for its reader. ``sequence`` is None for a reading."""
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
            if sequence is not None:  # a preempted sequence needs no second outputs
                sequence.first_output = max(sequence.first_output, sequence.table.length)
        except BaseException as error:
            self._end(job, error)
            return
        if job.is_ahead:
            job.paused = True
            if not job.is_ahead:  # the reader looked before ``paused`` was set, and sent no Resume
                self._inbox.put(Resume(job))

    def _go_on(self, job: RunningJob, sequence: CachedSequence | None, results: Iterator[Any]) -> None:
        """Continue with the results of a sequence that waited for another thread."""
        job.waiting -= 1
        if not job.ended:
            self._deliver(job, sequence, results)
        if not job.ended and job.task.done:
            self._end(job)

    def _end(self, job: RunningJob, error: BaseException | None = None) -> None:
        """Remove a job, free its pages, and notify its reader."""
        self._timed.discard(job)
        try:
            del self._jobs[job.task]
            self._no_longer_waits(job)
            self._scheduler.remove(job)
            job.task.close()
        except BaseException as failure:  # the reader is notified in any case
            error = error or failure
        self._tell_end(job, error)

    def _tell_end(self, job: RunningJob, error: BaseException | None) -> None:
        """Queue the end of a job's results."""
        job.ended = True
        self._results.append((job, End(error)))

    def _hand_over(self) -> None:
        """Pass the queued results to the readers.

        Readers run when the interpreter is free: while the next step computes, or while the engine waits. Results that
        arrive earlier would only wake readers that wait for the interpreter.
        """
        results, self._results = self._results, []
        for job in hand_over(results):
            if not job.ended:
                self._inbox.put(Abort(job))
