"""How many threads run a small step beside busy processes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from pellucid.runtime.pace import FIRST, LONGEST, WAITS, Pace


def run(pace: Pace, steps: int, waits: Callable[[int], int]) -> list[int]:
    """The team's sizes over so many steps; ``waits`` says how often a team of that size waits for cores."""
    sizes = []
    for _ in range(steps):
        sizes.append(pace.threads)
        pace.tell(waits(pace.threads))
    return sizes


@pytest.mark.parametrize("most", [1, 2, 4, 16])
def test_a_quiet_machine_keeps_all_threads(most: int) -> None:
    assert run(Pace(most), 1000, lambda threads: WAITS - 1) == [most] * 1000


@pytest.mark.parametrize(("most", "free"), [(2, 1), (4, 1), (4, 3), (16, 11)])
def test_it_settles_at_what_is_free_and_tries_one_more_ever_more_seldom(most: int, free: int) -> None:
    pace = Pace(most)
    run(pace, 2000, lambda threads: 100 * (threads > free))
    sizes = run(pace, 4 * LONGEST, lambda threads: 100 * (threads > free))
    assert set(sizes) <= {free, free + 1}
    assert sizes.count(free + 1) <= 4


@pytest.mark.parametrize("most", [2, 16])
def test_all_threads_are_back_soon_after_the_others_have_gone(most: int) -> None:
    pace = Pace(most)
    run(pace, 2000, lambda threads: 100)
    sizes = run(pace, LONGEST + 2 * FIRST * most, lambda threads: 0)
    assert sizes[-1] == most
    assert all(after - before in (0, 1) for before, after in pairwise(sizes)), "one more at a time"


def test_a_machine_that_is_busy_now_and_then_does_not_lose_the_team_for_long() -> None:
    pace = Pace(2)
    busy = iter([100, *[0] * 99] * 20)
    sizes = run(pace, 2000, lambda threads: next(busy))
    assert sizes.count(2) > 1700
