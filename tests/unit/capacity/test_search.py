"""How many replicas are enough, over a day, and what breaks first."""

from __future__ import annotations

import pytest

from pellucid.capacity.replica import ReplicaRoom
from pellucid.capacity.search import DAYS, SLICE, Goals, Search
from pellucid.capacity.simulate import router_seconds
from pellucid.capacity.step_costs import StepCosts
from pellucid.capacity.traffic import Traffic
from pellucid.measure.load import Lengths
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache_layout import LayerShape

COSTS = StepCosts({1: 0.01, 64: 0.1}, {1: 0.008, 256: 0.2}, request=0.005)
ROOM = ReplicaRoom([LayerShape(1, 64, 64)], [4096], 1 << 20, StepLimits(4096))


def search(rate: float, goals: Goals, **more: float) -> Search:
    traffic = Traffic(Lengths(100, 100), Lengths(50, 50), rate=rate, **more)  # type: ignore[arg-type]
    return Search(traffic, goals, ROOM, COSTS, warm=6.0, seconds=12.0)


def test_the_fewest_that_are_enough() -> None:
    found = search(30.0, Goals(0.5, 0.08))
    count = found.replicas(30.0)
    assert count is not None
    assert count > 1
    assert found.enough(30.0, count)
    assert not found.enough(30.0, count - 1)
    assert found.replicas(30.0, guess=4 * count) == count or found.enough(30.0, count)


def test_tighter_goals_and_more_requests_need_more() -> None:
    loose, tight = search(30.0, Goals(2.0, 0.2)), search(30.0, Goals(0.2, 0.03))
    few, many = loose.replicas(30.0), tight.replicas(30.0)
    assert few is not None
    assert many is not None
    assert few < many
    double = loose.replicas(60.0)
    assert double is not None
    assert 1.5 * few < double < 2.5 * few + 2


def test_goals_that_a_lone_request_misses() -> None:
    assert search(1.0, Goals(0.01, 1.0)).replicas(1.0) is None
    assert search(1.0, Goals(1.0, 0.001)).replicas(1.0) is None


def test_a_day_and_what_breaks() -> None:
    found = search(30.0, Goals(0.5, 0.08))
    most = found.replicas(30.0)
    assert most is not None
    day = found.day(DAYS["office"], most)
    assert sorted(hour for one in day for hour in one.hours) == list(range(24))
    assert day[0].replicas == most
    assert [one.replicas for one in day] == sorted((one.replicas for one in day), reverse=True)
    assert all(not found.goals.failures(one.outcome) for one in day)
    broken = found.breaks(most)
    assert broken is not None
    assert broken.times > 1
    assert broken.what.startswith("time")
    assert len(found.day(DAYS["flat"], most)) == 1


def test_ten_thousand_replicas_are_slices() -> None:
    found = search(1_000_000 / 60, Goals(0.5, 0.08))
    many = found.outcome(1_000_000 / 60, 10_000)
    slice_ = found.outcome(1_000_000 / 60 * SLICE / 10_000, SLICE)
    assert many.requests == slice_.requests
    front = found.front(10_000, many)
    assert front.ingresses > 10
    assert front.router_seconds == pytest.approx(router_seconds(10_000, 100), rel=3.0)


def test_few_requests_are_simulated_until_percentiles_mean_something() -> None:
    found = search(0.02, Goals(1.0, 0.2))
    assert found.outcome(0.02, 1).requests > 100
    assert search(0.005, Goals(1e-6, 1e-6)).replicas(0.005) is None


def test_a_first_prompt_that_no_cache_has_decides_nothing() -> None:
    traffic = Traffic(Lengths(256, 256), Lengths(20, 20), rate=30.0, shared=192)
    slow = Search(traffic, Goals(0.15, 0.1), ROOM, COSTS, warm=6.0, seconds=12.0)
    assert not slow.alone_fails
    assert slow.replicas(30.0) is not None


def test_conversations_come_at_the_rate_that_was_asked_for() -> None:
    for turns in (1, 4, 10):
        found = search(6.0, Goals(1.0, 0.2), turns=turns, think=20.0).outcome(6.0, 8)
        assert found.requests_per_second == pytest.approx(6.0, rel=0.25)
