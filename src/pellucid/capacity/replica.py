"""A replica in simulated time: the scheduler, the pace and the caches that really run; only steps take no time.

Steps that only make text are alike until something comes or ends, so up to a page of tokens are made at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pellucid.capacity.step_costs import StepCosts
from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.engine import TARGET
from pellucid.engine.pace import Pace
from pellucid.engine.scheduler import Job, JobTooLarge, Scheduler
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.pipeline import Scheduled
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache import BlockTable, KVCache
from pellucid.runtime.cache_layout import CachedLayer, LayerShape, StateShape, groups_of
from pellucid.runtime.sequence import CachedSequence

MOST_PAGES = 1 << 15  # of a group: two million tokens


@dataclass(frozen=True)
class ReplicaRoom:
    """What a replica has: ``pages`` of each group of ``layers``, bytes of the prefix cache, the limits of a step."""

    layers: Sequence[CachedLayer]
    pages: Sequence[int]
    kept_bytes: int
    limits: StepLimits


def simulated_cache(room: ReplicaRoom) -> CacheManager:
    """The cache of a replica, with pages of hardly any bytes, because nobody reads their content."""
    groups = groups_of(room.layers)
    tiny = [
        StateShape((("state", 1),))
        if group.recurrent
        else LayerShape(1, 1, 1, window=group.window, chunked=group.chunked)
        for group in groups
    ]
    # More pages than a simulation ever needs would only take time and memory here.
    most = max(MOST_PAGES, 2 * -(-room.limits.context // PAGE))
    kv = KVCache(tiny, [min(count, most) for count in room.pages])
    real, small = (sum(group.page_bytes for group in found) for found in (groups, kv.groups))
    return CacheManager(kv, max(room.kept_bytes * small // max(real, 1), 1))


def read(cache: CacheManager, table: BlockTable, tokens: int) -> None:
    """A step reads ``tokens`` more tokens of a block table, whose pages are allocated."""
    cache.kv.begin(table)
    cache.kv.advance(table, tokens)


@dataclass(eq=False)
class SimulatedText:
    """A request: a task whose tokens are placeholders. Times are simulated seconds."""

    number: int
    prompt: list[int]
    wanted: int
    came: float
    owner: Any = None
    first: float = 0.0
    last: float = 0.0
    failed: bool = False
    answer: list[int] = field(default_factory=list)
    path: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sequence = CachedSequence(self.prompt)

    @property
    def done(self) -> bool:
        """Whether it has all tokens."""
        return len(self.answer) >= self.wanted

    def begin(self, waited: float) -> None:
        """Its first step comes."""

    def sequences(self) -> Sequence[CachedSequence]:
        """Its text, as long as it needs steps."""
        return () if self.done else (self.sequence,)

    def texts(self) -> Sequence[CachedSequence]:
        """Its text."""
        return (self.sequence,)

    def take(self, sequence: CachedSequence, outputs: Any, seconds: float) -> Iterator[Any]:
        """Nothing: the replica makes its tokens."""
        return iter(())

    def close(self) -> None:
        """Nothing: the replica has its pages."""

    def make(self, count: int, first: float, last: float) -> None:
        """Tokens were made, the first and the last of them at these times."""
        if not self.answer:
            self.first = first
        self.last = last
        start = len(self.prompt) + len(self.answer)
        # Ids that no other text has: the answers of two requests are never equal.
        made = [-(self.number << 20) - start - at for at in range(1, count + 1)]
        self.answer += made
        self.sequence.tokens += made


class SimulatedReplica:
    """A replica. ``come`` gives it a request; ``time`` is when its step ends, at which ``end_step`` must be called.

    The noise of its steps is ``offset`` seconds ahead.
    """

    def __init__(self, room: ReplicaRoom, costs: StepCosts, offset: float = 0.0) -> None:
        self._costs, self._offset = costs, offset
        self.cache = simulated_cache(room)
        self._pace = Pace(TARGET)
        self._scheduler = Scheduler(self.cache, room.limits, self._pace)
        self._step: SimulatedStep | None = None
        self.time: float | None = None
        self.busy = self.prompts = 0.0
        """Seconds of its steps, and of those that read prompts beyond what they take without."""
        self.steps = 0

    @property
    def preemptions(self) -> int:
        """How often a request has lost its pages to another."""
        return self._scheduler.preemptions

    @property
    def step_seconds(self) -> float:
        """The mean time of a step."""
        return self.busy / self.steps if self.steps else 0.0

    def busy_until(self, now: float) -> float:
        """Seconds of its steps, and of what has passed of the one that runs."""
        return self.busy + (max(min(now, self._step.end) - self._step.began, 0.0) if self._step else 0.0)

    def come(self, text: SimulatedText, now: float) -> None:
        """A request comes; the step that runs now is the last one without it."""
        self._scheduler.add(Job(text))
        if self._step is None:
            self._begin(now)
        else:
            self.time = self._step.cut(now)

    def end_step(self) -> list[SimulatedText]:
        """The step ends at ``time``, and the next one begins. Returns the requests that have ended."""
        step, now = self._step, self.time
        assert step is not None
        assert now is not None
        self._take(step)
        ended = [self._removed(job) for job in list(self._scheduler) if job.task.done]
        return ended + self._begin(now)

    def _removed(self, job: Job) -> SimulatedText:
        """The request of a job, which leaves."""
        text = _text(job)
        self.cache.release(text.sequence.table, tokens=text.sequence.tokens)
        self._scheduler.remove(job)
        return text

    def _begin(self, now: float) -> list[SimulatedText]:
        """The next step begins. Returns the requests for which there is no room at all."""
        self._step = self.time = None
        failed = list[SimulatedText]()
        while len(self._scheduler):
            try:
                scheduled = self._scheduler.schedule()
                break
            except JobTooLarge as large:
                text = self._removed(large.job)
                text.failed, text.last = True, now
                failed.append(text)
        else:
            return failed
        self._step = step = SimulatedStep(scheduled, self._costs, now, self._costs.slowed(now + self._offset))
        if not step.prompts and len(scheduled) == len(self._scheduler):
            step.count = self._ahead(scheduled)
        self.time = step.end
        return failed

    def _ahead(self, scheduled: Sequence[Scheduled]) -> int:
        """How many steps like this one can follow it: up to the end of a text or of a page."""
        count = PAGE
        for one in scheduled:
            text = _text(one)
            length = text.sequence.table.length
            count = min(count, text.wanted - len(text.answer), PAGE - length % PAGE)
        return max(count, 1)

    def _take(self, step: SimulatedStep) -> None:
        """What a step has made."""
        count, first = step.count, step.began + step.seconds(1)
        for one in step.scheduled:
            text = _text(one)
            table, tokens = one.sequence.table, len(one.chunk.tokens)
            read(self.cache, table, tokens)
            if tokens > one.chunk.outputs:
                self.cache.prefixes.insert(table, one.sequence.tokens, grows=True, path=text.path)
            if one.chunk.outputs:
                text.make(count, first, step.end)
                if count > 1:  # within a page: nothing can be missing
                    self.cache.reserve(table, count - 1)
                    read(self.cache, table, count - 1)
                one.sequence.wanted = max(one.sequence.wanted, table.length)
        seconds = step.end - step.began
        self.busy, self.steps = self.busy + seconds, self.steps + count
        if step.prompts:
            self.prompts += max(
                0.0, seconds - (self._costs.step(step.rows, step.seen, 0, 0) if step.rows else 0)
            )
        for _ in range(min(count, 8)):  # the average has forgotten what is older
            self._pace.tell(step.rows, step.prompts, seconds / count)


def _text(of: Job | Scheduled) -> SimulatedText:
    """The request that a job or a part of a step belongs to: here there are no other tasks."""
    assert isinstance(of.task, SimulatedText)
    return of.task


class SimulatedStep:
    """A step, or ``count`` of them that are alike, from the time that it ``began``."""

    def __init__(self, scheduled: Sequence[Scheduled], costs: StepCosts, began: float, slowed: float) -> None:
        self.scheduled, self.began, self.count = scheduled, began, 1
        self.rows = self.seen = self.prompts = seen = 0
        for one in scheduled:
            tokens, length = len(one.chunk.tokens), one.sequence.table.length
            if tokens == 1 and one.chunk.outputs:
                self.rows, self.seen = self.rows + 1, self.seen + length + 1
            else:
                self.prompts, seen = self.prompts + tokens, seen + tokens * length + tokens * tokens // 2
        self._first = slowed * costs.step(self.rows, self.seen, self.prompts, seen)
        self._more = slowed * costs.next_step(self.rows, self.seen)

    def seconds(self, count: int) -> float:
        """Those of the first ``count`` steps: each row sees a token more in each."""
        return count * self._first + self._more * count * (count - 1) / 2

    @property
    def end(self) -> float:
        """When it ends."""
        return self.began + self.seconds(self.count)

    def cut(self, now: float) -> float:
        """End it with the step that runs now. Returns when that is."""
        if self.count > 1:
            passed = int(max(now - self.began, 0.0) / self._first)
            while passed > 0 and self.seconds(passed) > now - self.began:
                passed -= 1
            self.count = min(self.count, passed + 1)
        return self.end
