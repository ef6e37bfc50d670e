"""A replica in simulated time. Its scheduler, step times and caches are the real classes. Only steps are simulated.

Decode steps have the same sequences until a request arrives or ends, so a step may stand for up to a page of equal
steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.capacity.step_costs import StepCosts
from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import TARGET_SECONDS
from pellucid.engine.job import Job
from pellucid.engine.scheduler import JobTooLarge, Scheduler
from pellucid.engine.step_times import StepTimes
from pellucid.engine.task import ScheduledChunk
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.cache_layout import CachedLayer, LayerShape, StateShape, groups_of
from pellucid.runtime.cached_sequence import CachedSequence

MAX_PAGES = 1 << 15  # maximum number of pages of a group, which hold two million tokens


@dataclass(frozen=True)
class ReplicaCapacity:
    """Capacity of a replica: ``pages`` of each group of ``layers``, bytes of the prefix cache, and limits of a step."""

    layers: Sequence[CachedLayer]
    pages: Sequence[int]
    prefix_bytes: int
    limits: StepLimits


def simulated_cache(capacity: ReplicaCapacity) -> CacheManager:
    """The cache of a replica. Its pages have very few bytes, because the simulation does not read their content."""
    groups = groups_of(capacity.layers)
    tiny = [
        StateShape((("state", 1),))
        if group.recurrent
        else LayerShape(1, 1, 1, window=group.window, chunked=group.chunked)
        for group in groups
    ]
    # A simulation needs no more than ``limit`` pages. Further pages would only take time and memory.
    limit = max(MAX_PAGES, 2 * -(-capacity.limits.context // PAGE))
    kv = KVCache(tiny, [min(count, limit) for count in capacity.pages])
    real, small = (sum(group.page_bytes for group in layers) for layers in (groups, kv.groups))
    return CacheManager(kv, max(capacity.prefix_bytes * small // max(real, 1), 1))


def advance(cache: CacheManager, table: BlockTable, tokens: int) -> None:
    """Record that a step has computed ``tokens`` more tokens of a block table, whose pages are allocated."""
    cache.kv.begin(table)
    cache.kv.advance(table, tokens)


@dataclass(eq=False)
class SimulatedRequest:
    """A request: a task whose tokens are placeholders. Times are simulated seconds.

    ``arrival`` is the time at which the request arrives. ``first`` and ``last`` are the times of its first and last
    token.
    """

    number: int
    prompt: list[int]
    max_tokens: int
    arrival: float
    session: Any = None
    first: float = 0.0
    last: float = 0.0
    failed: bool = False
    answer: list[int] = field(default_factory=list)
    path: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sequence = CachedSequence(self.prompt)

    @property
    def done(self) -> bool:
        return len(self.answer) >= self.max_tokens

    @property
    def per_token(self) -> float:
        return (self.last - self.first) / (len(self.answer) - 1)

    def begin(self, waited: float) -> None: ...

    def runnable(self) -> Sequence[CachedSequence]:
        return () if self.done else (self.sequence,)

    def sequences(self) -> Sequence[CachedSequence]:
        return (self.sequence,)

    def process(self, sequence: CachedSequence, outputs: Any, seconds: float) -> Iterator[Any]:
        return iter(())

    def close(self) -> None: ...

    def generate(self, count: int, first: float, last: float) -> None:
        if not self.answer:
            self.first = first
        self.last = last
        start = len(self.prompt) + len(self.answer)
        # No other request has these ids, so the generated texts of two requests are never equal.
        ids = [-(self.number << 20) - start - at for at in range(1, count + 1)]
        self.answer += ids
        self.sequence.tokens += ids


class SimulatedReplica:
    """A replica. ``add`` adds a request. ``time`` is the end of the current step, when ``end_step`` must be called.

    ``offset`` shifts the noise of the step times by this number of seconds, so that replicas are not slow together.
    """

    def __init__(self, capacity: ReplicaCapacity, costs: StepCosts, offset: float = 0.0) -> None:
        self._costs, self._offset = costs, offset
        self.cache = simulated_cache(capacity)
        self._step_times = StepTimes(TARGET_SECONDS)
        self._scheduler = Scheduler(self.cache, capacity.limits, self._step_times)
        self._step: SimulatedStep | None = None
        self.time: float | None = None
        self.busy = self.prompts = 0.0
        """Seconds of all steps (``busy``), and the seconds that prefill has added to the steps (``prompts``)."""
        self.steps = 0

    @property
    def preemptions(self) -> int:
        return self._scheduler.preemptions

    @property
    def step_seconds(self) -> float:
        return self.busy / self.steps if self.steps else 0.0

    def busy_until(self, now: float) -> float:
        return self.busy + (max(min(now, self._step.end) - self._step.start, 0.0) if self._step else 0.0)

    def add(self, request: SimulatedRequest, now: float) -> None:
        """Add a request. The current step is the last step without this request."""
        self._scheduler.add(Job(request))
        if self._step is None:
            self._begin(now)
        else:
            self.time = self._step.cut(now)

    def end_step(self) -> list[SimulatedRequest]:
        """End the step at ``time``, and begin the next step. Return the requests that have ended."""
        step, now = self._step, self.time
        assert step is not None
        assert now is not None
        self._take(step)
        ended = [self._removed(job) for job in list(self._scheduler) if job.task.done]
        return ended + self._begin(now)

    def _removed(self, job: Job) -> SimulatedRequest:
        request = _request(job)
        self.cache.release(request.sequence.table, tokens=request.sequence.tokens)
        self._scheduler.remove(job)
        return request

    def _begin(self, now: float) -> list[SimulatedRequest]:
        self._step = self.time = None
        failed = list[SimulatedRequest]()
        while len(self._scheduler):
            try:
                scheduled = self._scheduler.schedule()
                break
            except JobTooLarge as large:
                request = self._removed(large.job)
                request.failed, request.last = True, now
                failed.append(request)
        else:
            return failed
        self._step = step = SimulatedStep(scheduled, self._costs, now, self._costs.slowdown(now + self._offset))
        if not step.prompts and len(scheduled) == len(self._scheduler):
            step.count = self._equal_steps(scheduled)
        self.time = step.end
        return failed

    def _equal_steps(self, scheduled: Sequence[ScheduledChunk]) -> int:
        """Return the number of equal steps in a row, up to the end of a request or of a page."""
        count = PAGE
        for part in scheduled:
            request = _request(part)
            length = request.sequence.table.length
            count = min(count, request.max_tokens - len(request.answer), PAGE - length % PAGE)
        return max(count, 1)

    def _take(self, step: SimulatedStep) -> None:
        count, first = step.count, step.start + step.seconds(1)
        for part in step.scheduled:
            request = _request(part)
            table, tokens = part.sequence.table, len(part.chunk.tokens)
            advance(self.cache, table, tokens)
            if tokens > part.chunk.outputs:
                self.cache.prefixes.insert(table, part.sequence.tokens, grows=True, path=request.path)
            if part.chunk.outputs:
                request.generate(count, first, step.end)
                if count > 1:  # the steps end within a page, so no new page is needed
                    self.cache.reserve(table, count - 1)
                    advance(self.cache, table, count - 1)
                part.sequence.first_output = max(part.sequence.first_output, table.length)
        seconds = step.end - step.start
        self.busy, self.steps = self.busy + seconds, self.steps + count
        if step.prompts:
            self.prompts += max(0.0, seconds - (self._costs.step(step.rows, step.seen, 0, 0) if step.rows else 0))
        # Eight records suffice: in the moving average, earlier steps have hardly any weight.
        for _ in range(min(count, 8)):
            self._step_times.record(step.rows, step.prompts, seconds / count)


def _request(of: Job | ScheduledChunk) -> SimulatedRequest:
    assert isinstance(of.task, SimulatedRequest)
    return of.task


class SimulatedStep:
    """A step, or ``count`` equal steps in a row, from the time ``start``."""

    def __init__(self, scheduled: Sequence[ScheduledChunk], costs: StepCosts, start: float, slowdown: float) -> None:
        self.scheduled, self.start, self.count = scheduled, start, 1
        self.rows = self.seen = self.prompts = seen = 0
        for part in scheduled:
            tokens, length = len(part.chunk.tokens), part.sequence.table.length
            if tokens == 1 and part.chunk.outputs:
                self.rows, self.seen = self.rows + 1, self.seen + length + 1
            else:
                self.prompts, seen = self.prompts + tokens, seen + tokens * length + tokens * tokens // 2
        self._first = slowdown * costs.step(self.rows, self.seen, self.prompts, seen)
        self._more = slowdown * costs.next_step(self.rows, self.seen)

    def seconds(self, count: int) -> float:
        """Return the seconds of the first ``count`` steps. A row attends to one more token in each step."""
        return count * self._first + self._more * count * (count - 1) / 2

    @property
    def end(self) -> float:
        return self.start + self.seconds(self.count)

    def cut(self, now: float) -> float:
        """Drop the steps after the step that runs at ``now``. Return the time at which this step ends."""
        if self.count > 1:
            passed = int(max(now - self.start, 0.0) / self._first)
            while passed > 0 and self.seconds(passed) > now - self.start:
                passed -= 1
            self.count = min(self.count, passed + 1)
        return self.end
