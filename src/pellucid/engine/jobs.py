"""The jobs of an engine, from their submission to their end. Passes their results to the readers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

from pellucid.engine.job import Abort, End, Job, Message, Ready, Resume, copied, put_results
from pellucid.engine.scheduler import Scheduler
from pellucid.engine.task import Task, Wait
from pellucid.errors import DeadlinePassed, InvalidRequest, QueueFull
from pellucid.runtime.cached_sequence import CachedSequence


class Jobs:
    """The jobs of an engine. Only the engine's thread changes them; other threads may call ``count_in``."""

    def __init__(self, scheduler: Scheduler, inbox: SimpleQueue[Message]) -> None:
        self._scheduler, self._inbox = scheduler, inbox
        self._jobs: dict[Task[Any], Job] = {}
        self._timed: set[Job] = set()  # jobs with a deadline
        self._results: list[tuple[Job, Any]] = []
        """Results that readers receive when the next step begins. The kernels of a step release the GIL for readers."""
        self._lock = threading.Lock()
        self.queued = 0
        """Number of jobs that wait for their first step, including jobs in the inbox."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(list(self._jobs.values()))

    def of(self, task: Task[Any]) -> Job | None:
        """The job of a task; None if the task has ended."""
        return self._jobs.get(task)

    def count_in(self, limit: int | None) -> None:
        """Count a job that is about to enter the inbox. Raises QueueFull if ``limit`` jobs are queued already."""
        with self._lock:
            if limit is not None and self.queued >= limit:
                raise QueueFull(f"the queue is full ({self.queued:,}): retry later, or raise --queue")
            self.queued += 1

    def count_out(self, job: Job) -> None:
        """Subtract a job from the number of queued jobs, at its first step or at its end."""
        if job.queued:
            job.queued = False
            with self._lock:
                self.queued -= 1

    def add(self, job: Job) -> None:
        """Add a job, unless its task is already running."""
        if job.task in self._jobs:
            self.count_out(job)
            self._put_end(job, InvalidRequest("this task is already running: create a new task"))
            return
        self._jobs[job.task] = job
        if job.deadline is not None:
            self._timed.add(job)
        self._scheduler.add(job)
        self.end_if_done(job)

    @property
    def seconds_left(self) -> list[float]:
        """Seconds until the deadline of each job that has a deadline."""
        return [job.seconds_left for job in self._timed]

    def expire(self) -> None:
        """End the jobs whose deadline has passed."""
        for job in [job for job in self._timed if job.seconds_left <= 0]:
            waited = "it was still in the queue" if job.queued else "it was running"
            self.end(job, DeadlinePassed(f"the request did not end within {job.deadline:g} s: {waited}"))

    def deliver(self, job: Job, sequence: CachedSequence | None, results: Iterator[Any]) -> None:
        """Compute results of a task and queue them for its reader. ``sequence`` is None for a reading.

        An error in the task ends the job.
        """
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
            # A sequence that is preempted later computes its tokens again, but not these outputs.
            if sequence is not None:
                sequence.first_output = max(sequence.first_output, sequence.table.length)
        except BaseException as error:
            self.end(job, error)
            return
        if job.is_ahead:
            job.paused = True
            if not job.is_ahead:  # the reader checked ``paused`` before it was set, and sent no Resume
                self._inbox.put(Resume(job))

    def continue_delivery(self, ready: Ready) -> None:
        """Continue with the results of a sequence that waited for another thread."""
        job = ready.job
        job.waiting -= 1
        if not job.ended:
            self.deliver(job, ready.sequence, ready.results)
            self.end_if_done(job)

    def end_if_done(self, job: Job) -> None:
        """End a job whose task is done, unless it has ended already."""
        if not job.ended and job.task.done:
            self.end(job)

    def end(self, job: Job, error: BaseException | None = None) -> None:
        """Remove a job, free its pages, and notify its reader. Does nothing if the job is not running."""
        if self._jobs.get(job.task) is not job:
            return
        self._timed.discard(job)
        try:
            del self._jobs[job.task]
            self.count_out(job)
            self._scheduler.remove(job)
            job.task.close()
        except BaseException as failure:  # the reader is notified in any case
            error = error or failure
        self._put_end(job, error)

    def end_all(self, error: BaseException) -> None:
        """End all jobs with an error."""
        for job in self:
            self.end(job, copied(error))

    def _put_end(self, job: Job, error: BaseException | None) -> None:
        job.ended = True
        self._results.append((job, End(error)))

    def flush(self) -> None:
        """Pass the queued results to the readers.

        Readers run when the GIL is free: while the next step computes, or while the engine waits. Results that arrive
        earlier would only wake readers that then wait for the GIL.
        """
        results, self._results = self._results, []
        for job in put_results(results):
            if not job.ended:
                self._inbox.put(Abort(job))
