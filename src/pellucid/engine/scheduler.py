"""The scheduler: chooses the tokens of each sequence that run in the next step.

A step has a token budget. Decode rows come first. They are one token of each decoding sequence, and the forced or draft
tokens after this token. Prompts share the rest of the budget. The target duration of a step limits the number of prompt
tokens (``step_times.py``). Prompts have this order:

1. Prompts of jobs with higher priority come first.
2. At equal priority, the client that has used the least machine time comes first (``job.py``).
3. Among the prompts of a client, the prompt with the fewest unread tokens comes first, so that a short prompt does not
   wait for a long prompt. The oldest prompt gets at least a quarter of the prompts' budget, so that it does not starve.

Readings (``task.py``) run between steps. At most one reading runs after each step, when it is its client's turn.

When a job needs pages and too few are free, another job is preempted and loses its pages. The preempted job is a job
that waits for its reader. If no job waits, it is the newest eligible job. An eligible job has a lower priority, is a
later job of the same client, or belongs to a client with more jobs in the cache. The preempted job computes its tokens
again after another job has ended. Its output does not change, because recomputed values are the same, bit for bit.

The scheduler is plain Python. It needs only the cache, not the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set

from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.job import FairShares, Job
from pellucid.engine.step_times import StepTimes
from pellucid.engine.task import ReadingTask, ScheduledChunk
from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.cached_sequence import CachedSequence

OLDEST_SHARE = 4
"""The oldest prompt of a client gets at least 1 / OLDEST_SHARE of the prompts' token budget."""


class Scheduler:
    """Holds the jobs and plans the steps. ``sources`` is the cache of an encoder's sources."""

    def __init__(
        self, cache: CacheManager, limits: StepLimits, step_times: StepTimes, sources: CacheManager | None = None
    ) -> None:
        self._cache, self._limits, self._step_times = cache, limits, step_times
        self._sources = sources or cache
        self._jobs: list[Job] = []
        self._shares = FairShares()
        self._count = 0
        self._has_read = False
        self._tokens = Counter[str]()
        """Number of tokens of each client in the last planned step; empty if only one client had jobs."""
        self.preemptions = 0
        """Number of times that a job lost its pages to another job."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def add(self, job: Job) -> None:
        """Add a job."""
        self._count += 1
        job.number = self._count
        self._jobs.append(job)
        self._jobs.sort(key=lambda one: one.order)
        self._shares.enter(job.client)

    def remove(self, job: Job) -> None:
        """Remove a job that has ended. Preempted jobs may run again."""
        self._jobs.remove(job)
        self._shares.leave(job.client)
        for other in self._jobs:
            other.preempted = False

    def preempt_all(self) -> None:
        """Preempt all jobs that have pages."""
        for job in self._jobs:
            if job.has_pages:
                self._preempt(job)

    def charge(self, seconds: float) -> None:
        """Charge the ``seconds`` of the last planned step to its clients, in proportion to their tokens.

        A client is charged even if its job has ended.
        """
        self._shares.charge(self._tokens, seconds)

    def charge_reading(self, job: Job, seconds: float) -> None:
        """Charge the ``seconds`` of a reading's turn to its client."""
        self._shares.charge({job.client: 1}, seconds)

    def next_reading(self, *, alone: bool = False) -> Job | None:
        """The reading that runs before the next step, or None. ``alone`` is True if no step can run now."""
        ready = [job for job in self._jobs if not job.paused]
        readings = [job for job in ready if isinstance(job.task, ReadingTask)]
        if not readings:
            return None
        others = [self._shares.used(job.client) for job in ready if not isinstance(job.task, ReadingTask)]
        first = min(readings, key=lambda job: (-job.priority, self._shares.used(job.client)))
        if others and not alone and (self._has_read or self._shares.used(first.client) > min(others)):
            return None
        self._has_read = True
        return first

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the chunks of the next step and allocate their pages. Returns no chunks if every job waits.

        Raises:
            JobTooLarge: no job can run, because the first job does not fit into the cache by itself.
        """
        self._has_read = False
        step = _StepBudget(self._limits)
        ready = [job for job in self._jobs if not job.paused]
        shortages: dict[Job, CacheFull] = {}
        rows, prompts = list[tuple[Job, CachedSequence]](), list[tuple[Job, CachedSequence]]()
        for job in ready:
            if job.preempted and any(other.has_pages for other in ready if other is not job):
                continue
            job.preempted = False
            for sequence in job.task.runnable():
                self._scale(sequence)
                (rows if sequence.decodes else prompts).append((job, sequence))
        self._decode(step, rows, {job for job, _ in prompts}, shortages)
        if prompts:
            self._read_prompts(step, prompts, shortages)
        if not step.chunks and shortages:
            job = min(shortages, key=lambda job: job.order)
            raise JobTooLarge(job, shortages[job])
        self._tokens.clear()
        # If only one client has jobs, it is not charged: other clients would start at its counter anyway.
        if self._shares.contended:
            for job, one in step.chunks:
                self._tokens[job.client] += len(one.chunk.tokens)
        return [one for _, one in step.chunks]

    def _decode(
        self,
        step: _StepBudget,
        rows: list[tuple[Job, CachedSequence]],
        prompt_jobs: Set[Job],
        shortages: dict[Job, CacheFull],
    ) -> None:
        """Add the decode rows to a step.

        ``prompt_jobs`` are the jobs with prompts. If not all sequences fit into the step, places are reserved for the
        prompts of clients without a decode row, and of jobs without a decode row while other jobs have several.
        """
        if len(rows) + len(prompt_jobs) > step.sequences:
            jobs = Counter(job for job, _ in rows)
            clients = {job.client for job in prompt_jobs} - {job.client for job in jobs}
            reserved = max(len(clients), min(len(prompt_jobs - jobs.keys()), len(rows) - len(jobs)))
            places = step.sequences - min(reserved, step.sequences // 2)
            if len(rows) > places:
                rows = sorted(rows, key=self._order_of_rows(rows))[:places]
        for job, sequence in rows:
            if not job.preempted:  # else it was preempted in this step
                self._add(step, job, sequence, sequence.unread_tokens, shortages)

    def _order_of_rows(
        self, rows: Sequence[tuple[Job, CachedSequence]]
    ) -> Callable[[tuple[Job, CachedSequence]], tuple[int, float, int]]:
        """A sort key for rows: by priority, then by client, then the first row of each job before its other rows."""
        seen, place = Counter[Job](), dict[CachedSequence, int]()
        for job, sequence in rows:
            place[sequence] = seen[job]
            seen[job] += 1
        return lambda one: (-one[0].priority, self._shares.used(one[0].client), place[one[1]])

    def _read_prompts(
        self, step: _StepBudget, prompts: list[tuple[Job, CachedSequence]], shortages: dict[Job, CacheFull]
    ) -> None:
        """Add the next tokens of prompts to a step, within its target duration."""
        rows, divided = self._limits.tokens - step.tokens, not any(one.in_one_step for _, one in prompts)
        room = self._step_times.prefill_tokens(rows, self._limits.tokens, divided=divided)
        reading = set[int]()
        for own in self._by_client(prompts):
            for job, sequence, most in self._by_length(own, room):
                if room <= 0 or not step.sequences:
                    return
                if job.preempted:  # it was preempted in this step
                    continue
                if not sequence.table.length:
                    self._find_prefix(sequence)
                page = _next_page(sequence)
                # If another sequence computes this page in the step, wait until the page is in the prefix cache.
                if page in reading:
                    self._release(sequence)
                    continue
                most = sequence.unread_tokens if sequence.in_one_step else min(room, most, sequence.unread_tokens)
                added = self._add(step, job, sequence, most, shortages)
                room -= added
                if added and page is not None:
                    reading.add(page)

    def _by_client(self, prompts: list[tuple[Job, CachedSequence]]) -> list[list[tuple[Job, CachedSequence]]]:
        """Group the prompts by priority and client. At equal priority the client with the least used time is first."""
        found: dict[tuple[int, str], list[tuple[Job, CachedSequence]]] = {}
        for job, sequence in prompts:
            found.setdefault((-job.priority, job.client), []).append((job, sequence))
        return [found[key] for key in sorted(found, key=lambda key: (key[0], self._shares.used(key[1])))]

    def _by_length(
        self, prompts: list[tuple[Job, CachedSequence]], room: int
    ) -> Iterator[tuple[Job, CachedSequence, int]]:
        """Yield a client's prompts with their token limits in the step: the oldest prompt, then the others by length.

        ``prompts`` are in order of arrival. ``room`` is the number of prompt tokens that the step may still add. The
        oldest prompt gets the part of ``room`` that shorter prompts do not need, and at least 1 / OLDEST_SHARE of it.
        """
        if len(prompts) == 1:
            yield *prompts[0], room
            return
        unread = {sequence: self._unread(sequence) for _, sequence in prompts}
        oldest, *others = prompts
        shorter = sum(unread[one] for _, one in others if unread[one] < unread[oldest[1]])
        yield *oldest, max(room - shorter, -(-room // OLDEST_SHARE))
        for job, sequence in sorted(others, key=lambda one: unread[one[1]]):
            yield job, sequence, room

    def _unread(self, sequence: CachedSequence) -> int:
        """Number of unread tokens of a prompt, without the tokens that the prefix cache held at the first lookup."""
        if sequence.table.length or sequence.cacheable_tokens <= 0:
            return sequence.unread_tokens
        if sequence.matched is None:
            most, scaled = sequence.cacheable_tokens, sequence.table.scaled
            sequence.matched = self._cache.match_prefix(sequence.tokens, most, scaled=scaled)
        return sequence.unread_tokens - sequence.matched

    def _scale(self, sequence: CachedSequence) -> None:
        """Let a text that grows longer than the unscaled context be computed again, with scaled positions.

        transformers, too, computes the keys of LongRoPE again at this length.
        """
        if sequence.table.scaled or not self._limits.is_scaled(sequence.certain_tokens):
            return
        if sequence.table.length:
            self._release(sequence)
            if sequence.recorder is not None:
                sequence.recorder.forget()
        sequence.table.scaled, sequence.matched = True, None

    def _find_prefix(self, sequence: CachedSequence) -> None:
        """Set a sequence's block table to the pages that the prefix cache holds for its first tokens."""
        if (most := sequence.cacheable_tokens) > 0:
            sequence.table = self._cache.find_prefix(sequence.tokens, most, scaled=sequence.table.scaled)

    def _add(
        self, step: _StepBudget, job: Job, sequence: CachedSequence, most: int, shortages: dict[Job, CacheFull]
    ) -> int:
        """Add a sequence's next tokens to the step, if they fit and pages are free. Returns the number of tokens."""
        most = min(most, step.tokens)
        if self._limits.unscaled and not sequence.table.scaled:
            most = min(most, self._limits.unscaled - sequence.table.length)
        if not most or not step.sequences or (sequence.in_one_step and most < sequence.unread_tokens):
            return 0
        chunk = sequence.chunk(_to_page_border(sequence, most) if self._cache.has_states else most, step.outputs)
        if not chunk.tokens:
            return 0
        while True:
            try:
                self._cache_of(sequence).reserve(sequence.table, len(chunk.tokens))
                break
            except CacheFull as error:
                victim = self._victim(job)
                if victim is None:
                    shortages.setdefault(job, error)
                    return 0
                self._preempt(victim)
                step.drop(victim)
                shortages.pop(victim, None)
        if sequence.cached is None:  # set only once, because a preempted sequence later finds its own pages
            sequence.cached = sequence.table.length
        step.add(job, ScheduledChunk(job.task, sequence, chunk))
        return len(chunk.tokens)

    def _victim(self, job: Job) -> Job | None:
        """Return the job that loses its pages to ``job``; None if no job may lose its pages.

        This is a job that waits for its reader. If no job waits, it is the newest eligible job.
        """
        others = [one for one in reversed(self._jobs) if one is not job and one.has_pages]
        jobs = Counter(one.client for one in others)
        own = jobs[job.client] + 1

        def may_lose(one: Job) -> bool:
            later = one.order > job.order
            if one.client == job.client or one.priority != job.priority:
                return later
            # Clients converge to equal numbers of jobs in the cache, and do not preempt each other in turn.
            return jobs[one.client] > own - later

        return next((one for one in others if one.paused), None) or next((one for one in others if may_lose(one)), None)

    def _preempt(self, job: Job) -> None:
        """Release a job's pages to the prefix cache, which keeps the pages until their memory is needed."""
        for sequence in job.task.sequences():
            self._release(sequence)
        self.preemptions += 1
        job.preempted = True

    def _release(self, sequence: CachedSequence) -> None:
        """Release a sequence's pages to the prefix cache."""
        table, sequence.table = sequence.table, BlockTable()
        self._cache_of(sequence).release(table, tokens=sequence.shared_tokens)

    def _cache_of(self, sequence: CachedSequence) -> CacheManager:
        """The cache that holds the pages of a sequence."""
        return self._sources if sequence.encodes else self._cache


class JobTooLarge(Exception):
    """A job that cannot run. ``error`` is the error for its reader."""

    def __init__(self, job: Job, error: CacheFull) -> None:
        super().__init__(str(error))
        self.job, self.error = job, error


class _StepBudget:
    """The chunks of a step, and the numbers of tokens, outputs and sequences that may still be added to the step."""

    def __init__(self, limits: StepLimits) -> None:
        self.tokens, self.outputs, self.sequences = limits.tokens, limits.outputs, limits.sequences
        self.chunks: list[tuple[Job, ScheduledChunk]] = []

    def add(self, job: Job, one: ScheduledChunk) -> None:
        self._count(one, -1)
        self.chunks.append((job, one))

    def drop(self, job: Job) -> None:
        """Remove a job's chunks."""
        for other, one in self.chunks:
            if other is job:
                self._count(one, 1)
        self.chunks = [(other, one) for other, one in self.chunks if other is not job]

    def _count(self, one: ScheduledChunk, sign: int) -> None:
        self.tokens += sign * len(one.chunk.tokens)
        self.outputs += sign * one.chunk.outputs
        self.sequences += sign


def _to_page_border(sequence: CachedSequence, most: int) -> int:
    """Number of tokens to run, at most ``most``. If a step runs only a part of a prompt, it ends at a page border."""
    start = sequence.table.length
    border = (start + most) // PAGE * PAGE
    return border - start if start < border and most < sequence.unread_tokens else most


def _next_page(sequence: CachedSequence) -> int | None:
    """Hash of the tokens up to the end of the next page; None if the sequence does not compute a whole shared page.

    For a source, whose pages are only shared together, it is the hash of all tokens.
    """
    if sequence.encodes:
        return hash(tuple(sequence.tokens))
    end = (sequence.table.length // PAGE + 1) * PAGE
    if sequence.table.length % PAGE or end > sequence.cacheable_tokens:
        return None
    return hash(tuple(sequence.tokens[:end]))
