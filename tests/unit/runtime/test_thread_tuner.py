"""The tuned number of threads for small steps on a busy machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest

from pellucid.runtime.executor import LARGE_TEAM, MAX_INTERVAL, MIN_INTERVAL, MIN_WAITS, ThreadTuner

Step = Callable[[int], tuple[int, float]]
"""Function from a number of threads to the waits and seconds of a step."""


def run(pace: ThreadTuner, steps: int, step: Step) -> list[int]:
    """Number of threads in each of several steps."""
    sizes = []
    for _ in range(steps):
        sizes.append(pace.threads)
        pace.record(*step(pace.threads))
    return sizes


def quiet(threads: int) -> tuple[int, float]:
    return MIN_WAITS - 1, 1 / threads


def busy(free: int) -> Step:
    """A machine with ``free`` free cores: surplus threads make the others wait."""
    return lambda threads: (0, 1 / threads) if threads <= free else (100, 5.0)


@pytest.mark.parametrize("most", [1, 2, 4, LARGE_TEAM])
def test_a_quiet_machine_keeps_all_threads(most: int) -> None:
    assert run(ThreadTuner(most), 3000, quiet) == [most] * 3000


def test_a_large_team_seldom_tries_half_of_it() -> None:
    sizes = run(ThreadTuner(64), 3000, quiet)
    assert Counter(sizes) == {64: 3000 - sizes.count(32), 32: sizes.count(32)}
    assert sizes.count(32) <= 0.015 * 3000


def meeting(threads: int) -> tuple[int, float]:
    """A step that divides over threads, with a cost per thread at the barrier. 20 threads are best."""
    return 0, 4.0 / threads + 0.01 * threads


@pytest.mark.parametrize("most", [16, 32, 64, 128])
def test_a_large_team_finds_how_many_are_fastest(most: int) -> None:
    pace = ThreadTuner(most)
    run(pace, 1000, meeting)
    taken = sum(meeting(size)[1] for size in run(pace, 2000, meeting)) / 2000
    assert taken <= 1.03 * min(meeting(size)[1] for size in range(1, most + 1))


def waking(step: Step, seconds: float) -> Step:
    """A step with more threads than before takes ``seconds`` longer, because threads wake up."""
    before = [0]

    def slow(threads: int) -> tuple[int, float]:
        waits, taken = step(threads)
        taken, before[0] = taken + seconds * (threads > before[0]), threads
        return waits, taken

    return slow


@pytest.mark.parametrize("wake", [0.05, 0.2])
@pytest.mark.parametrize("most", [2, 8, 16, 64, 128])
def test_threads_that_wake_up_slowly_are_back_too(most: int, wake: float) -> None:
    """Their first step takes up to 13 times as long as the others."""
    pace = ThreadTuner(most)
    run(pace, 300, busy(1))
    step = waking(quiet, wake)
    run(pace, MAX_INTERVAL + 2 * MIN_INTERVAL * most, step)
    assert Counter(run(pace, 500, step))[most] >= 0.9 * 500


def test_a_number_that_helps_only_when_it_is_large_enough_is_found() -> None:
    """A matrix of 18 parts: with 9 to 17 threads some thread has two parts, with 18 threads each has one."""
    pace = ThreadTuner(64)
    pace.threads = 9
    run(pace, 2000, lambda threads: (0, float(-(-18 // threads))))
    sizes = run(pace, 2000, lambda threads: (0, float(-(-18 // threads))))
    assert sum(size >= 18 for size in sizes) > 0.95 * len(sizes)


def test_a_large_team_is_steady_for_a_long_time() -> None:
    sizes = run(ThreadTuner(64), 300_000, quiet)
    assert set(sizes) == {32, 64}
    assert sizes.count(32) < 0.015 * len(sizes)


def test_a_longer_step_has_all_threads_again() -> None:
    """A step with a long context computes more, so it uses more threads."""
    pace = ThreadTuner(64)
    run(pace, 1000, meeting)
    sizes = run(pace, 3000, quiet)
    assert sizes[-1] == 64


@pytest.mark.parametrize(("most", "free"), [(2, 1), (4, 1), (4, 3), (16, 11)])
def test_it_settles_at_what_is_free_and_tries_one_more_ever_more_seldom(most: int, free: int) -> None:
    pace = ThreadTuner(most)
    run(pace, 2000, busy(free))
    sizes = run(pace, 4 * MAX_INTERVAL, busy(free))
    assert Counter(sizes)[free] >= 0.95 * len(sizes)


@pytest.mark.parametrize("most", [2, LARGE_TEAM])
def test_all_threads_are_back_soon_after_the_others_have_gone(most: int) -> None:
    pace = ThreadTuner(most)
    run(pace, 2000, busy(1))
    sizes = run(pace, MAX_INTERVAL + 2 * MIN_INTERVAL * most, quiet)
    assert sizes[-1] == most
    assert all(after - before in (0, 1) for before, after in pairwise(sizes)), "one more at a time"


def test_waiting_that_costs_less_than_a_thread_is_put_up_with() -> None:
    """Threads wait in every fifth step, but a single thread would take longer."""
    turns = iter(range(10**6))

    def step(threads: int) -> tuple[int, float]:
        waits = 100 * (threads == 2 and next(turns) % 5 == 0)
        return waits, {1: 1.4, 2: 1.2 if waits else 1.0}[threads]

    sizes = run(ThreadTuner(2), 3000, step)
    assert Counter(sizes)[2] > 0.98 * len(sizes)


def test_what_one_thread_took_long_ago_is_measured_again() -> None:
    """At first a single thread is no better; later it is."""
    pace = ThreadTuner(2)
    run(pace, 500, lambda threads: (100, 1.0) if threads == 2 else (0, 3.0))
    sizes = run(pace, 4000, lambda threads: (100, 5.0) if threads == 2 else (0, 3.0))
    assert Counter(sizes[2000:])[1] > 1800


def test_a_step_that_waits_by_itself_is_no_busy_machine() -> None:
    """The first step after a load or a pause waits for pages and for threads that wake up."""
    turns = iter(range(10**6))

    def step(threads: int) -> tuple[int, float]:
        first = next(turns) % 20 == 0
        return (1000, 1.3) if first else (0, 1 / threads)

    assert set(run(ThreadTuner(2), 400, step)) == {2}


def test_fewer_threads_that_are_slower_are_left_at_once() -> None:
    turns = iter(range(10**6))

    def step(threads: int) -> tuple[int, float]:
        begins = next(turns) < 2
        return (1000 * begins, 1.1 if begins else 3.0 / threads)

    sizes = run(ThreadTuner(4), 40, step)
    assert sizes[2:4] == [2, 2]
    assert sizes[4:] == [4] * 36
