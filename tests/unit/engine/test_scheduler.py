"""The scheduler on a fake model: every token runs once and in order, within the limits, also without free pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pellucid.capacity.simulated_replica import ReplicaCapacity, advance, simulated_cache
from pellucid.engine.cache_manager import CacheManager
from pellucid.engine.job import Job, SchedulingOptions
from pellucid.engine.scheduler import JobTooLarge, Scheduler
from pellucid.engine.step_times import MIN_PREFILL, StepTimes
from pellucid.engine.task import ReadingTask, ScheduledChunk
from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache_layout import LayerShape
from pellucid.runtime.cached_sequence import CachedSequence

LIMITS = StepLimits(4096, tokens=256, outputs=16, sequences=8)


def cache_of(pages: int) -> CacheManager:
    """A cache with ``pages`` pages, without a model."""
    return simulated_cache(ReplicaCapacity([LayerShape(1, 16, 16)], [pages], 1 << 40, StepLimits(PAGE)))


class Fake:
    """A task with a prompt and ``answer`` generated tokens. Each token depends on all previous tokens."""

    def __init__(self, cache: CacheManager, prompt: Sequence[int], answer: int) -> None:
        self.cache, self.text = cache, CachedSequence(prompt)
        self.prompt, self.answer, self.made = list(prompt), answer, list[int]()

    @property
    def done(self) -> bool:
        return len(self.made) == self.answer

    def begin(self, waited: float) -> None:
        pass

    def runnable(self) -> list[CachedSequence]:
        return [self.text]

    def sequences(self) -> list[CachedSequence]:
        return [self.text]

    def process(self, sequence: CachedSequence, outputs: Any, seconds: float) -> Iterator[Any]:
        assert outputs == 1
        self.made.append(hash(tuple(sequence.tokens)) % 1000)
        sequence.tokens.append(self.made[-1])
        sequence.first_output = len(sequence.tokens) - 1
        yield self.made[-1]

    def close(self) -> None:
        self.cache.release(self.text.table, tokens=self.text.tokens)


def job_of(task: Any, priority: int = 0, client: str = "") -> Job:
    return Job(task, SchedulingOptions(priority, client=client))


def alone(prompt: Sequence[int], answer: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(answer):
        tokens.append(hash(tuple(tokens)) % 1000)
    return tokens[len(prompt) :]


def run_step(scheduler: Scheduler, cache: CacheManager) -> list[ScheduledChunk]:
    step = scheduler.schedule()
    assert sum(len(one.chunk.tokens) for one in step) <= LIMITS.tokens
    assert sum(one.chunk.outputs for one in step) <= LIMITS.outputs
    assert len(step) <= LIMITS.sequences
    assert len({id(one.sequence) for one in step}) == len(step)
    for one in step:
        length = one.sequence.table.length
        assert one.chunk.table is one.sequence.table
        assert list(one.chunk.tokens) == one.sequence.tokens[length : length + len(one.chunk.tokens)]
        advance(cache, one.sequence.table, len(one.chunk.tokens))
        if len(one.chunk.tokens) > 1:
            cache.prefixes.insert(one.sequence.table, one.sequence.tokens, grows=True)
        if one.chunk.outputs:
            list(one.task.process(one.sequence, one.chunk.outputs, 0.1))
    for job in [job for job in scheduler if job.task.done]:
        scheduler.remove(job)
        job.task.close()
    return step


def run_all(scheduler: Scheduler, cache: CacheManager) -> None:
    while len(scheduler):
        run_step(scheduler, cache)


requests = st.lists(
    st.tuples(
        st.integers(1, 400), st.integers(1, 90), st.integers(-1, 1), st.integers(0, 12), st.sampled_from(["", "a", "b"])
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
# Only the prefix cache holds the first page of the last text; cache and text share the other pages.
@example([*[(1, 1, 0, 0, "")] * 5, (1, 4, 0, 0, ""), (128, 1, 0, 1, ""), (1, 1, 0, 0, ""), (360, 90, 0, 0, "")], 8, [])
@given(requests, st.integers(8, 40), st.lists(st.integers(0, 11), max_size=20))
def test_every_request_gets_what_it_would_alone(
    asked: list[tuple[int, int, int, int, str]], pages: int, pauses: list[int]
) -> None:
    """Requests arrive at different steps, share prefixes, run out of pages and pause: their outputs do not change."""
    cache = cache_of(pages)
    scheduler = Scheduler(cache, LIMITS, StepTimes(0.15))
    prompts = [
        [number % 2] * (length // 2) + [number] * (length - length // 2) for number, (length, *_) in enumerate(asked)
    ]
    tasks = [Fake(cache, prompt, answer) for prompt, (_, answer, *_) in zip(prompts, asked)]
    jobs = [job_of(task, priority, client) for task, (_, _, priority, _, client) in zip(tasks, asked)]
    steps = 0
    while any(not task.done for task in tasks):
        for job, (*_, comes, _) in zip(jobs, asked):
            if comes == steps:
                scheduler.add(job)
        if len(scheduler):
            if steps < len(pauses) and pauses[steps] < len(jobs):
                jobs[pauses[steps]].paused = not jobs[pauses[steps]].paused
            elif steps >= len(pauses):
                for job in jobs:
                    job.paused = False
            if any(not job.paused for job in scheduler):
                step = run_step(scheduler, cache)
                assert step, "a step in which nothing runs"
                scheduler.charge(0.1)
        steps += 1
        assert steps < 5000
    assert [task.made for task in tasks] == [alone(prompt, answer) for prompt, (_, answer, *_) in zip(prompts, asked)]
    cache.prefixes.clear()
    assert cache.kv.free_pages == pages


def scheduler_of(pages: int = 200, target: float = 0.15) -> tuple[Scheduler, CacheManager]:
    cache = cache_of(pages)
    return Scheduler(cache, LIMITS, StepTimes(target)), cache


def steps_until(scheduler: Scheduler, cache: CacheManager, task: Fake) -> int:
    """Run steps until a task has its next token. Returns the number of steps."""
    for steps in range(1, 10_000):
        before = len(task.made)
        run_step(scheduler, cache)
        scheduler.charge(0.1)
        if len(task.made) > before:
            return steps
    raise AssertionError("it starves")


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    scheduler, cache = scheduler_of()
    long, short = Fake(cache, [1] * 8000, 1), Fake(cache, [2] * 100, 1)
    scheduler.add(job_of(long))
    run_step(scheduler, cache)
    scheduler.add(job_of(short))
    assert steps_until(scheduler, cache, short) == 1
    assert steps_until(scheduler, cache, long) == -(-(8000 + 100 - 2 * LIMITS.tokens) // LIMITS.tokens)


@pytest.mark.parametrize("token_seconds", [0.0001, 0.0003, 0.002, 0.1])
def test_steps_of_prompts_are_short_and_a_short_prompt_runs_in_the_next(token_seconds: float) -> None:
    """The bound of the documents: the step that runs, and ⌈n / (3 c / 4)⌉ steps for n tokens in steps of c tokens."""
    cache = cache_of(300)
    step_times = StepTimes(0.15)
    scheduler = Scheduler(cache, LIMITS, step_times)
    long = Fake(cache, [1] * 12_000, 1)
    scheduler.add(job_of(long))

    def timed() -> int:
        tokens = sum(len(one.chunk.tokens) for one in run_step(scheduler, cache))
        step_times.record(0, tokens, token_seconds * tokens)
        return tokens

    timed()
    tokens = timed()
    assert tokens == min(LIMITS.tokens, max(96, int(0.05 / token_seconds)))
    for count in (5, 30, 70, 200):
        short = Fake(cache, [count + 2] * count, 1)
        scheduler.add(job_of(short))
        steps = 0
        while not short.done:
            assert timed() == tokens or long.done
            steps += 1
        assert steps == -(-count // (3 * tokens // 4))
    assert not long.done


def test_no_stream_of_short_prompts_starves_a_long_one() -> None:
    """Short prompts that fill each step leave a quarter of the step to the oldest prompt."""
    scheduler, cache = scheduler_of(pages=1000)
    long = Fake(cache, [1] * 4000, 1)
    scheduler.add(job_of(long))
    steps = 0
    while not long.done:
        for number in range(3):
            scheduler.add(job_of(Fake(cache, [100 + 3 * steps + number] * 100, 1)))
        run_step(scheduler, cache)
        steps += 1
    assert steps <= 4000 // (LIMITS.tokens // 4) + 1


def test_many_long_prompts_and_a_trickle_of_short_ones() -> None:
    scheduler, cache = scheduler_of(pages=3000)
    longs = [Fake(cache, [number] * 2000, 1) for number in range(64)]
    for task in longs:
        scheduler.add(job_of(task))
    waits, first, steps = list[int](), 0, 0
    while any(not task.done for task in longs):
        short = Fake(cache, [1000 + steps] * 30, 1)
        scheduler.add(job_of(short))
        waits.append(steps_until(scheduler, cache, short))
        for _ in range(3):
            if len(scheduler):
                run_step(scheduler, cache)
        steps += waits[-1] + 3
        first = first or (steps if longs[0].done else 0)
    assert max(waits) == 1
    assert first <= 1.3 * 2000 / LIMITS.tokens + 4, "the oldest long one is hardly slower than alone"
    assert steps <= 1.1 * 64 * 2000 / LIMITS.tokens


def test_a_prompt_that_is_mostly_cached_counts_as_short() -> None:
    scheduler, cache = scheduler_of()
    first = Fake(cache, [7] * 2000, 1)
    scheduler.add(job_of(first))
    run_all(scheduler, cache)
    scheduler.add(job_of(Fake(cache, [1] * 3000, 1)))
    run_step(scheduler, cache)
    again = Fake(cache, [7] * 2000 + [8] * 20, 1)
    scheduler.add(job_of(again))
    assert steps_until(scheduler, cache, again) == 1


def test_clients_share_the_machine_whatever_each_asks() -> None:
    """A client has forty long prompts. Another client's single requests do not wait for them."""
    scheduler, cache = scheduler_of(pages=4000)
    for number in range(40):
        scheduler.add(job_of(Fake(cache, [number] * 2000, 1), client="many"))
    for _ in range(5):
        run_step(scheduler, cache)
        scheduler.charge(0.1)
    for number in range(5):
        asked = Fake(cache, [100 + number] * 1000, 1)
        scheduler.add(job_of(asked, client="one"))
        assert steps_until(scheduler, cache, asked) <= 2 * -(-1000 // LIMITS.tokens) + 1


def test_a_client_with_all_rows_leaves_a_place_for_another() -> None:
    scheduler, cache = scheduler_of()
    for number in range(20):
        scheduler.add(job_of(Fake(cache, [number] * 3, 300), client="many"))
    for _ in range(10):
        run_step(scheduler, cache)
    asked = Fake(cache, [50] * 3, 20)
    scheduler.add(job_of(asked, client="one"))
    for _ in range(25):
        run_step(scheduler, cache)
        scheduler.charge(0.1)
    assert asked.done


def test_a_request_of_many_rows_leaves_a_place_for_others_of_its_client() -> None:
    scheduler, cache = scheduler_of()

    class Many(Fake):
        """A task with twelve sequences. A step has room for eight."""

        def __init__(self) -> None:
            super().__init__(cache, [1], 10_000)
            self.all = [CachedSequence([number, 1]) for number in range(12)]

        def runnable(self) -> list[CachedSequence]:
            return self.all

        def sequences(self) -> list[CachedSequence]:
            return self.all

    scheduler.add(job_of(Many()))
    for _ in range(10):
        run_step(scheduler, cache)
    asked = Fake(cache, [50] * 3, 20)
    scheduler.add(job_of(asked))
    for _ in range(30):
        run_step(scheduler, cache)
    assert asked.done


def test_clients_do_not_take_pages_from_each_other_in_turn() -> None:
    scheduler, cache = scheduler_of(pages=24)
    for client in ("a", "b"):
        for number in range(4):
            prompt = [ord(client) * 10 + number] * 200
            scheduler.add(job_of(Fake(cache, prompt, 400), client=client))
    run_all(scheduler, cache)
    assert scheduler.preemptions < 40


def test_a_client_takes_pages_from_one_that_has_all() -> None:
    scheduler, cache = scheduler_of(pages=16)
    for number in range(4):
        scheduler.add(job_of(Fake(cache, [number] * 220, 700), client="many"))
    for _ in range(20):
        run_step(scheduler, cache)
    asked = Fake(cache, [9] * 220, 20)
    scheduler.add(job_of(asked, client="one"))
    assert steps_until(scheduler, cache, asked) <= 10


def test_readings_have_their_clients_turns() -> None:
    """At most one reading runs after a step, and fewer if their client has used more time than the others."""
    scheduler, cache = scheduler_of()

    def turns() -> Iterator[int]:
        yield from range(1000)

    reading = ReadingTask(turns())
    scheduler.add(job_of(Fake(cache, [1] * 3, 500), client="text"))
    scheduler.add(job_of(reading, client="look"))
    steps = read = 0
    while steps < 100:
        job = scheduler.next_reading()
        if job is None:
            run_step(scheduler, cache)
            scheduler.charge(0.02)
            steps += 1
        else:
            list(job.task.turn())  # type: ignore[attr-defined]
            scheduler.charge_reading(job, 0.2)
            read += 1
    assert 8 <= read <= 12, "both have used as many seconds"


def test_readings_alone_run_one_after_the_other() -> None:
    scheduler, _ = scheduler_of()
    reading = ReadingTask(number for number in range(3))
    scheduler.add(job_of(reading))
    found = list[int]()
    while not reading.done:
        job = scheduler.next_reading()
        assert job is not None
        found += reading.turn()
    assert found == [0, 1, 2]


def test_a_long_prompt_does_not_stall_a_text() -> None:
    step_times = StepTimes(0.15)
    cache = cache_of(200)
    scheduler = Scheduler(cache, LIMITS, step_times)
    text, long = Fake(cache, [1] * 10, 500), Fake(cache, [2] * 4000, 1)
    scheduler.add(job_of(text))
    run_step(scheduler, cache)
    for _ in range(20):
        run_step(scheduler, cache)
        step_times.record(1, 0, 0.030)
    scheduler.add(job_of(long))
    while not long.done:
        step = run_step(scheduler, cache)
        assert text.text in [one.sequence for one in step], "the text has a token in every step"
        prompt = sum(len(one.chunk.tokens) for one in step if one.sequence is long.text)
        seconds = 0.030 + 0.001 * prompt
        assert seconds < 0.151
        step_times.record(1, prompt, seconds)
    assert len(text.made) < 70, "the prompt is read in parts that use the time"


def test_higher_priority_comes_first_then_who_came_first() -> None:
    scheduler, cache = scheduler_of()
    tasks = [Fake(cache, [number] * 250, 1) for number in range(4)]
    for task, priority in zip(tasks, (0, 0, 5, 0)):
        scheduler.add(job_of(task, priority))
    order = list[int]()
    while len(scheduler):
        run_step(scheduler, cache)
        order += [n for n, task in enumerate(tasks) if task.done and n not in order]
    assert order == [2, 0, 1, 3]


def test_texts_that_begin_alike_are_read_once_though_they_come_together() -> None:
    scheduler, cache = scheduler_of()
    tasks = [Fake(cache, [7] * (3 * PAGE) + [number] * 10, 2) for number in range(4)]
    for task in tasks:
        scheduler.add(job_of(task))
    read = 0
    while len(scheduler):
        read += sum(len(one.chunk.tokens) for one in run_step(scheduler, cache))
    assert read == 3 * PAGE + 4 * (10 + 1)
    assert sorted(task.text.cached for task in tasks) == [0] + [3 * PAGE] * 3


def test_texts_that_go_on_alike_after_what_is_cached_are_read_once_too() -> None:
    scheduler, cache = scheduler_of()
    first = Fake(cache, [7] * (2 * PAGE) + [1], 1)
    scheduler.add(job_of(first))
    run_all(scheduler, cache)
    tasks = [Fake(cache, [7] * (2 * PAGE) + [8] * (2 * PAGE) + [number] * 5, 1) for number in range(3)]
    for task in tasks:
        scheduler.add(job_of(task))
    read = 0
    while len(scheduler):
        read += sum(len(one.chunk.tokens) for one in run_step(scheduler, cache))
    assert read == 2 * PAGE + 3 * 5


def test_sentences_that_begin_alike_share_a_step() -> None:
    """A sentence runs prefill whole, so it does not wait for the prefix of another sentence."""
    scheduler, cache = scheduler_of()
    texts = [CachedSequence([7] * PAGE + [number], PAGE + 1, in_one_step=True) for number in range(3)]

    class Sentences(Fake):
        def runnable(self) -> list[CachedSequence]:
            return texts

    scheduler.add(job_of(Sentences(cache, [1], 1)))
    assert len(scheduler.schedule()) == 3


def test_who_waits_for_room_costs_nothing() -> None:
    scheduler, cache = scheduler_of()
    for number in range(40):
        scheduler.add(job_of(Fake(cache, [number] * 3, 50)))
    run_step(scheduler, cache)
    found = list[int]()
    find = cache.find_prefix
    cache.find_prefix = lambda ids, most, **how: found.append(ids[0]) or find(ids, most, **how)  # type: ignore[func-returns-value,method-assign]
    run_step(scheduler, cache)
    assert not found
    run_all(scheduler, cache)


def test_the_last_one_makes_way_when_pages_run_out_and_comes_back() -> None:
    scheduler, cache = scheduler_of(pages=8)
    first, second = Fake(cache, [1] * 200, 150), Fake(cache, [2] * 200, 150)
    jobs = job_of(first), job_of(second)
    for job in jobs:
        scheduler.add(job)
    while not first.done:
        run_step(scheduler, cache)
        assert not jobs[0].preempted
    assert jobs[1].preempted is False
    assert not second.done
    run_all(scheduler, cache)
    assert (first.made, second.made) == (alone([1] * 200, 150), alone([2] * 200, 150))


def test_what_does_not_fit_by_itself_is_an_error_of_its_job() -> None:
    scheduler, cache = scheduler_of(pages=4)
    small, large = job_of(Fake(cache, [1] * 100, 3)), job_of(Fake(cache, [2] * 300, 3))
    scheduler.add(large)
    scheduler.add(small)
    with pytest.raises(JobTooLarge) as caught:
        run_all(scheduler, cache)
    assert caught.value.job is large
    assert isinstance(caught.value.error, CacheFull)
    scheduler.remove(large)
    large.task.close()
    run_all(scheduler, cache)
    assert small.task.made == alone([1] * 100, 3)


def test_the_pace_follows_what_steps_cost() -> None:
    step_times = StepTimes(0.1)
    assert step_times.prefill_tokens(0, 256) == 256
    assert MIN_PREFILL <= step_times.prefill_tokens(1, 256) < 256
    for _ in range(9):
        step_times.record(1, 0, 0.02)
        step_times.record(1, 40, 0.02 + 0.04)
    assert step_times.prefill_tokens(1, 256) == pytest.approx(0.85 * 100 - 20, abs=1)
    step_times.record(1, 40, 0.02 + 0.4)
    assert step_times.prefill_tokens(1, 256) == MIN_PREFILL, "a slow step counts at once"
    for _ in range(90):
        step_times.record(1, 16, 0.02 + 0.016)
    assert step_times.prefill_tokens(1, 256) > 55
    assert step_times.prefill_tokens(0, 256, divided=False) == 256
