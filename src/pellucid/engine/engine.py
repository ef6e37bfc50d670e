"""The engine: one thread that repeats ``pipeline.step`` for all requests until no request is left.

All work on the model is a task. ``submit`` passes a task to the thread and returns its `Results`. The thread owns the
scheduler, the jobs and their pages. Other threads only put messages into its inbox. Putting a message never blocks, so
even the garbage collector can cancel a task whose results were dropped. A task pauses when its reader falls a few
results behind. An error in a task ends only this task.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.job import (
    DEFAULT_SCHEDULING,
    MAX_UNREAD,
    Abort,
    BetweenSteps,
    Job,
    Message,
    Ready,
    Results,
    Resume,
    SchedulingOptions,
    Settle,
    Stop,
    Submit,
    copied,
)
from pellucid.engine.jobs import Jobs
from pellucid.engine.model_runner import ModelRunner
from pellucid.engine.recorder import RequestTracer
from pellucid.engine.scheduler import JobTooLarge, Scheduler
from pellucid.engine.source import SourceSequence
from pellucid.engine.speculation import DraftModel
from pellucid.engine.state import EngineState
from pellucid.engine.step_times import StepTimes, counts
from pellucid.engine.task import ChunkOutput, ReadingTask, ScheduledChunk, Task
from pellucid.errors import InvalidRequest, KernelError
from pellucid.runtime.executor import FORKED
from pellucid.runtime.memory import release_heap

T = TypeVar("T")
IDLE_SECONDS = 0.5
"""Seconds without a task after which the thread ends and frees unused memory."""
TARGET_SECONDS = 0.15
"""Target duration in seconds of a step that mixes prefill and decode."""


class Engine:
    """Runs tasks together on a `ModelRunner`: a step may serve several tasks.

    ``step`` runs one step of an engine (``pipeline.step``). ``target`` is the target duration in seconds of a step that
    mixes prefill and decode. ``draft`` proposes draft tokens.
    """

    def __init__(
        self,
        runner: ModelRunner,
        step: Callable[[Engine], object],
        target: float = TARGET_SECONDS,
        draft: DraftModel | None = None,
    ) -> None:
        self.runner, self.cache, self.draft = runner, runner.cache, draft
        self.step_times = StepTimes(target)
        self.steps, self.step_seconds = 0, 0.0
        self._step = step
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self.sources = runner.encoder.cache if runner.encoder else None
        """The cache of sources in an encoder-decoder."""
        self._scheduler = Scheduler(runner.cache, runner.limits, self.step_times, self.sources)
        self._jobs = Jobs(self._scheduler, self._inbox)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._max_queued: int | None = None
        self._settled: list[threading.Event] = []
        self._step_start: float | None = None
        self._draft_start = 0.0
        self._process = os.getpid()

    def submit(
        self,
        task: Task[Any],
        scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
        *,
        max_unread: int = MAX_UNREAD,
        deliver: Callable[[Any], object] | None = None,
        convert: Callable[[Any], Any] | None = None,
    ) -> Results[Any]:
        """Start a task. It pauses while ``max_unread`` results are unread.

        The engine's thread calls ``convert`` and ``deliver`` with each result; both must be quick. The reader receives
        the return value of ``convert``. With ``deliver`` the `Results` are empty and the task never pauses.

        Raises:
            InvalidRequest: the engine is closed.
            QueueFull: the queue is full.
        """
        job = Job(task, scheduling, max_unread=max_unread, deliver=deliver, convert=convert)
        self._refuse_here()
        with self._lock:
            if self._closed:
                raise InvalidRequest("the model is closed: load it again")
            self._start()
            self._jobs.count_in(self._max_queued)
            self._inbox.put(Submit(job))
        return Results(job, self._inbox)

    def _start(self) -> None:
        """Start the thread if it is not running. The caller holds the lock."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="pellucid-engine", daemon=True)
            thread.start()
            self._thread = thread

    def _refuse_here(self) -> None:
        """Raise InvalidRequest in the engine's thread, where a call would deadlock, and in a forked child process."""
        if os.getpid() != self._process:
            raise InvalidRequest(FORKED)
        if threading.current_thread() is self._thread:
            raise InvalidRequest(
                "code in the engine's thread (a sampler step, an edit or a callback) calls the model that runs it "
                "and would wait forever: use a second model"
            )

    def run(
        self, task: Task[T], scheduling: SchedulingOptions = DEFAULT_SCHEDULING, *, max_unread: int = MAX_UNREAD
    ) -> Iterator[T]:
        """Start a task at the first iteration, and yield its results. The task ends when the iteration ends."""
        with closing(self.submit(task, scheduling, max_unread=max_unread)) as results:
            yield from results

    def source(self, ids: list[int], watching: RequestTracer | None = None) -> SourceSequence | None:
        """A prompt as a source for the encoder; None without an encoder. Raises: as ``RequestTracer.begin_source``."""
        recorder = watching.begin_source(ids) if watching is not None and self.sources is not None else None
        return None if self.sources is None else SourceSequence(self.sources, ids, recorder)

    def limit_queue(self, queue: int | None) -> None:
        """Limit the queue: at most ``queue`` tasks may wait for their first step. None, the default, sets no limit."""
        self._max_queued = queue

    def between_steps(self, function: Callable[[], object]) -> bool:
        """Call ``function``, which must not raise, in the engine's thread before the next step.

        Returns False if the engine is closed, or in a forked child.
        """
        if os.getpid() != self._process:
            return False
        with self._lock:
            if self._closed:
                return False
            self._start()
            self._inbox.put(BetweenSteps(function))
        return True

    def settle(self) -> None:
        """Wait until no task can run, because each remaining task waits for its reader."""
        self._refuse_here()
        done = threading.Event()
        with self._lock:
            if self._thread is None:
                return
            self._inbox.put(Settle(done))
        done.wait()

    def preempt(self) -> None:
        """Take the pages of all tasks, which compute their tokens again. Call it ``between_steps``, or once settled."""
        self._scheduler.preempt_all()

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
        return self._jobs.queued

    @property
    def running(self) -> int:
        """Number of tasks that have had their first step."""
        return sum(not job.queued for job in self._jobs)

    @property
    def preemptions(self) -> int:
        """Number of times that a task lost its pages to another task."""
        return self._scheduler.preemptions

    @property
    def pages_in_use(self) -> int:
        """Number of pages in block tables of tasks. Pages that only the prefix cache holds count as free."""
        own = [one for job in self._jobs for one in list(job.task.sequences())]
        return sum(self.cache.pages_of(one.table for one in own if one.encodes is encodes) for encodes in (False, True))

    @property
    def _caches(self) -> list[CacheManager]:
        return [self.cache] if self.sources is None else [self.cache, self.sources]

    def state(self) -> EngineState:
        """A snapshot of the engine's state."""
        runner = self.runner
        return EngineState(
            self.running,
            self.waiting,
            self.steps,
            self.step_seconds,
            self.preemptions,
            sum(one.kv.pages for one in self._caches),
            self.pages_in_use,
            sum(one.prefixes.nbytes for one in self._caches),
            runner.threads,
            tuple(runner.stage_seconds),
        )

    # The engine's thread handles messages and runs steps until no task is left.

    def _work(self) -> None:
        """The thread's main function. An error outside a task is a bug: it ends all tasks, so that no reader hangs."""
        self.runner.executor.placement.bind(0)
        while True:
            try:
                self._loop()
                return
            except BaseException as error:
                self._jobs.end_all(error)

    def _loop(self) -> None:
        """Handle messages and run steps until no task and no message is left."""
        while True:
            self._jobs.expire()
            idle = all(job.paused for job in self._scheduler)
            if idle:
                self._jobs.flush()
                for event in self._settled:
                    event.set()
                self._settled.clear()
            unused = not len(self._scheduler)
            patience = (0.0 if self._closed else IDLE_SECONDS) if unused else math.inf
            if self._receive(idle, patience):
                continue
            if not idle:
                self._step(self)
            elif unused:
                for cache in self._caches:
                    cache.trim()
                release_heap()
                with self._lock:
                    if self._inbox.empty():
                        self._thread = None
                        return

    def _receive(self, wait: bool, patience: float = math.inf) -> bool:
        """Handle the next message, if any. Returns True if a message was handled.

        With ``wait``, wait for a message until the next deadline, or for ``patience`` seconds if no job has a deadline.
        """
        if not wait and self._inbox.empty():
            return False
        seconds = min(self._jobs.seconds_left, default=patience)
        try:
            timeout = max(seconds, 0.0) if seconds < math.inf else None
            self._handle(self._inbox.get(block=wait, timeout=timeout))
            return True
        except Empty:
            return False

    def _handle(self, message: Message) -> None:
        match message:
            case Submit(job):
                self._jobs.add(job)
            case Abort(job) if not job.ended:
                self._jobs.end(job)
            case Resume(job) if not job.ended:
                job.paused = job.is_ahead
                self._jobs.end_if_done(job)
            case Ready():
                self._jobs.continue_delivery(message)
            case BetweenSteps(function):
                function()
            case Settle(event):
                self._settled.append(event)
            case Stop():
                self._jobs.end_all(InvalidRequest("the model was closed while the request ran"))

    # A step (``pipeline.step``): schedule → forward → deliver → finish.

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the chunks of the next step.

        Returns no chunks if no task can run now, if a reading (``task.py``) runs in place of a step, or if a task
        failed.
        """
        if self._read(alone=False):
            return []
        # If some jobs advance without a step, they may free pages, so a job that does not fit now may fit later.
        others = any(job.waiting or isinstance(job.task, ReadingTask) for job in self._jobs)
        scheduled = list[ScheduledChunk]()
        try:
            scheduled = self._scheduler.schedule()
        except JobTooLarge as large:
            if not others:
                self._jobs.end(large.job, large.error)
                return []
        if not scheduled and not self._read(alone=True):
            self._wait_or_fail(others)
        return [one for one in scheduled if self._begin(one.task)]

    def _begin(self, task: Task[Any]) -> bool:
        """Prepare a task before its first step. Returns False if the task has ended because its preparation failed."""
        job = self._jobs.of(task)
        if job is None:  # the preparation failed for an earlier chunk of the same task
            return False
        self._jobs.count_out(job)
        try:
            if not job.begun:
                job.begun = True
                task.begin(job.waited)
        except BaseException as error:
            self._jobs.end(job, error)
        return not job.ended

    def _wait_or_fail(self, others: bool) -> None:
        """Wait for a message, or end a job that cannot run. Called if no chunk was found for the next step.

        ``others`` is True if some jobs advance without a step. The engine then waits, because they may free pages.
        """
        if others:
            self._jobs.flush()
            self._receive(True)
            return
        stuck = next(job for job in self._scheduler if not job.paused)
        error = KernelError("a task is not done, but has no tokens to compute: this is a bug of the task")
        self._jobs.end(stuck, error)

    def _read(self, *, alone: bool) -> bool:
        """Run one turn of a reading, if its client comes first. ``alone`` is True if no step can run now."""
        job = self._scheduler.next_reading(alone=alone)
        if job is None:
            return False
        assert isinstance(job.task, ReadingTask)
        self._jobs.count_out(job)
        self._jobs.flush()
        start = time.perf_counter()
        self._jobs.deliver(job, None, job.task.turn())
        self._scheduler.charge_reading(job, time.perf_counter() - start)
        self._jobs.end_if_done(job)
        return True

    def forward(self, scheduled: Sequence[ScheduledChunk]) -> tuple[list[ChunkOutput], float]:
        """Run the chunks. Returns the output of each chunk, and the seconds of the step.

        If the step fails, its tasks end with the error, and there are no outputs. The runner splits the chunks into
        several steps if they exceed the limits of a step.
        """
        self._step_start = None
        if not scheduled:
            return [], 0.0
        self._jobs.flush()
        start, self._draft_start = time.perf_counter(), self._draft_seconds
        try:
            outputs = self.runner.forward_all([one.chunk for one in scheduled])
        except BaseException as error:
            for task in {one.task for one in scheduled}:
                if job := self._jobs.of(task):
                    self._jobs.end(job, copied(error))
            return [], 0.0
        self._step_start = start
        return outputs, time.perf_counter() - start

    def deliver(self, scheduled: ScheduledChunk, results: Iterator[Any]) -> None:
        """Compute the results of a chunk, and queue them for the task's reader."""
        sequence, chunk = scheduled.sequence, scheduled.chunk
        if len(chunk.tokens) > chunk.outputs and not (sequence.in_one_step or sequence.uncacheable):
            self.cache.keep_prefix(sequence.table, sequence.tokens)
        if job := self._jobs.of(scheduled.task):  # else another sequence of the task failed in this step
            self._jobs.deliver(job, sequence, results)

    def finish(self, scheduled: Sequence[ScheduledChunk]) -> None:
        """Record the time of a step, and end the tasks that are done."""
        if self._step_start is None:  # no step ran, or it failed
            return
        seconds = time.perf_counter() - self._step_start - (self._draft_seconds - self._draft_start)
        self.steps, self.step_seconds = self.steps + 1, self.step_seconds + seconds
        self.step_times.record(*counts(scheduled), seconds)
        self._scheduler.charge(seconds)
        for task in dict.fromkeys(one.task for one in scheduled):
            if job := self._jobs.of(task):
                self._jobs.end_if_done(job)

    @property
    def _draft_seconds(self) -> float:
        """Total seconds of the draft model. It runs while results are delivered. Step times exclude these seconds."""
        return self.draft.seconds if self.draft else 0.0
