"""The scheduler: which tokens of which sequences run in the next step.

A step has room for a number of tokens. First come the sequences that make text, a token each (and those that a
constraint forces, or that are proposed); what is left reads prompts, in parts, as many tokens as the time of a step
allows (``pace.py``), so that a long prompt does not stall the others. Jobs of higher priority come first, among equals
those that came first.

When pages run out, a job loses its pages: one that waits for its reader, else the last one. It reads its tokens again
when another one has ended; what it made does not change, because bits depend on nothing else.

Plain Python: memory is a protocol, and no model is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pellucid.engine.pace import Pace
from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.pipeline import Scheduled, Task
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import BlockTable
from pellucid.runtime.sequence import MOST_AHEAD, CachedSequence

SHORT = 1 + MOST_AHEAD
"""A sequence with so few tokens left makes text: they are the last one, and those that are forced or proposed."""


class Memory(Protocol):
    """The cache, as the scheduler uses it. ``engine/model_runner.py`` implements it."""

    @property
    def has_states(self) -> bool:
        """Whether sequences have a state, which others can share only where a step has ended at a page border."""
        ...

    def reserve(self, table: BlockTable, tokens: int) -> None:
        """Allocate the pages of ``tokens`` more tokens. Raises CacheFull."""

    def find_prefix(self, ids: Sequence[int], most: int) -> BlockTable:
        """What the prefix cache has of the first ``most`` tokens."""
        ...

    def release(self, *tables: BlockTable, tokens: Sequence[int] = ()) -> None:
        """Give up block tables; with ``tokens``, to the prefix cache."""


@dataclass(eq=False)
class Job:
    """A task in the scheduler. ``paused``: it waits for its reader. ``parked``: it waits for pages of others."""

    task: Task[Any]
    priority: int = 0
    number: int = 0
    paused: bool = False
    parked: bool = False
    begun: bool = False

    @property
    def place(self) -> tuple[int, int]:
        """Its place in the order: lower comes first."""
        return -self.priority, self.number

    @property
    def waited(self) -> float:
        """Seconds since it came."""
        return 0.0

    @property
    def has_pages(self) -> bool:
        return any(one.table.length for one in self.task.texts())


class Scheduler:
    """Keeps the jobs and plans steps."""

    def __init__(self, memory: Memory, limits: StepLimits, pace: Pace) -> None:
        self._memory, self._limits, self._pace = memory, limits, pace
        self._jobs: list[Job] = []
        self._count = 0
        self.preemptions = 0
        """How often a job has lost its pages to another."""

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def add(self, job: Job) -> None:
        """A job enters."""
        self._count += 1
        job.number = self._count
        self._jobs.append(job)
        self._jobs.sort(key=lambda one: one.place)

    def remove(self, job: Job) -> None:
        """A job leaves. Its task has given its pages back."""
        self._jobs.remove(job)
        for other in self._jobs:
            other.parked = False

    def schedule(self) -> list[Scheduled]:
        """The chunks of the next step, for which pages are allocated; none if every job waits.

        Raises:
            JobTooLarge: no job can run, because the first one does not fit into the cache by itself.
        """
        step = _Room(self._limits)
        ready = [job for job in self._jobs if not job.paused]
        short: dict[Job, CacheFull] = {}
        prompts = list[tuple[Job, CachedSequence]]()
        for job in ready:
            if job.parked and any(other.has_pages for other in ready if other is not job):
                continue
            job.parked = False
            for sequence in job.task.sequences():
                if sequence.table.length and sequence.left <= SHORT:
                    self._take(step, job, sequence, sequence.left, short)
                else:
                    prompts.append((job, sequence))
        if prompts:
            self._read_prompts(step, prompts, short)
        if not step.chunks and short:
            job = min(short, key=lambda job: job.place)
            raise JobTooLarge(job, short[job])
        return [one for _, one in step.chunks]

    def _read_prompts(
        self, step: _Room, prompts: list[tuple[Job, CachedSequence]], short: dict[Job, CacheFull]
    ) -> None:
        """Add the next tokens of prompts to a step, as many as its time allows."""
        room = self._pace.prompt_tokens(self._limits.tokens - step.tokens, self._limits.tokens)
        reading = set[int]()
        for job, sequence in prompts:
            if room <= 0 or not step.sequences:
                break
            if job.parked:  # it has lost its pages in this step
                continue
            if not sequence.table.length:
                self._find(sequence)
            page = _next_page(sequence)
            if page in reading:  # another one reads it in this step; afterwards it is found
                self._give_back(sequence)
                continue
            most = sequence.left if sequence.whole else min(room, sequence.left)
            took = self._take(step, job, sequence, most, short)
            room -= took
            if took and page is not None:
                reading.add(page)

    def _find(self, sequence: CachedSequence) -> None:
        """Give a sequence what the prefix cache has of it."""
        if (most := sequence.findable) > 0:
            sequence.table = self._memory.find_prefix(sequence.tokens, most)

    def _take(
        self, step: _Room, job: Job, sequence: CachedSequence, most: int, short: dict[Job, CacheFull]
    ) -> int:
        """Add a sequence's next tokens to the step, if there is room and memory. Returns how many these are."""
        most = min(most, step.tokens)
        if not most or not step.sequences or (sequence.whole and most < sequence.left):
            return 0
        chunk = sequence.chunk(_to_border(sequence, most) if self._memory.has_states else most, step.outputs)
        if not chunk.tokens:
            return 0
        while True:
            try:
                self._memory.reserve(sequence.table, len(chunk.tokens))
                break
            except CacheFull as error:
                victim = self._victim(job)
                if victim is None:
                    short.setdefault(job, error)
                    return 0
                self._preempt(victim)
                step.drop(victim)
                short.pop(victim, None)
        if not job.begun:
            job.begun = True
            job.task.begin(job.waited)
        if sequence.cached is None:  # not what it finds of its own, should it lose its pages
            sequence.cached = sequence.table.length
        step.add(job, Scheduled(job.task, sequence, chunk))
        return len(chunk.tokens)

    def _victim(self, job: Job) -> Job | None:
        """The job that loses its pages to ``job``: one that waits for its reader, else the last one after it."""
        others = [one for one in reversed(self._jobs) if one is not job and one.has_pages]
        return next((one for one in others if one.paused), None) or next(
            (one for one in others if one.place > job.place), None
        )

    def _preempt(self, job: Job) -> None:
        """Take a job's pages; the prefix cache keeps them while nobody needs them."""
        for sequence in job.task.texts():
            self._give_back(sequence)
        self.preemptions += 1
        job.parked = True

    def _give_back(self, sequence: CachedSequence) -> None:
        """Leave a sequence's pages to the prefix cache."""
        table, sequence.table = sequence.table, BlockTable()
        self._memory.release(table, tokens=sequence.shared_tokens)


class JobTooLarge(Exception):
    """A job cannot run: ``error`` is what its reader is told."""

    def __init__(self, job: Job, error: CacheFull) -> None:
        super().__init__(str(error))
        self.job, self.error = job, error


class _Room:
    """The chunks of a step, and the room that is left in it."""

    def __init__(self, limits: StepLimits) -> None:
        self.tokens, self.outputs, self.sequences = limits.tokens, limits.outputs, limits.sequences
        self.chunks: list[tuple[Job, Scheduled]] = []

    def add(self, job: Job, one: Scheduled) -> None:
        self._count(one, -1)
        self.chunks.append((job, one))

    def drop(self, job: Job) -> None:
        """Take a job's chunks out again."""
        for other, one in self.chunks:
            if other is job:
                self._count(one, 1)
        self.chunks = [(other, one) for other, one in self.chunks if other is not job]

    def _count(self, one: Scheduled, sign: int) -> None:
        self.tokens += sign * len(one.chunk.tokens)
        self.outputs += sign * one.chunk.outputs
        self.sequences += sign


def _to_border(sequence: CachedSequence, most: int) -> int:
    """``most`` tokens, or fewer, so that a part of a prompt ends at a page border."""
    start = sequence.table.length
    border = (start + most) // PAGE * PAGE
    return border - start if start < border and most < sequence.left else most


def _next_page(sequence: CachedSequence) -> int | None:
    """A number that stands for the whole page that is read next, and all tokens before it; None if it is not whole."""
    end = (sequence.table.length // PAGE + 1) * PAGE
    if sequence.table.length % PAGE or end > sequence.findable:
        return None
    return hash(tuple(sequence.tokens[:end]))
