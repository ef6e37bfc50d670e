"""The search for the number of replicas, also over a day, and for the first failure at higher rates."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.capacity.search import DAYS, MAX_EXCESS, MAX_SLICE, MIN_SLOW_REQUESTS, Goals, Search
from pellucid.capacity.simulate import MAX_ONGOING, Outcome, Traffic
from pellucid.capacity.simulated_replica import ReplicaCapacity
from pellucid.capacity.step_costs import StepCosts
from pellucid.measure.server_load import Lengths
from pellucid.runtime.batch import StepLimits
from pellucid.runtime.cache_layout import LayerShape

COSTS = StepCosts({1: 0.01, 64: 0.1}, {1: 0.008, 256: 0.2}, request=0.005)
ROOM = ReplicaCapacity([LayerShape(1, 64, 64)], [4096], 1 << 20, StepLimits(4096))


def search(rate: float, goals: Goals, **more: float) -> Search:
    traffic = Traffic(Lengths(100, 100), Lengths(50, 50), rate=rate, **more)  # type: ignore[arg-type]
    return Search(traffic, goals, ROOM, COSTS, warm=6.0, seconds=12.0)


def outcome(**values: object) -> Outcome:
    """An outcome that meets all goals of 1 second, but for ``values``."""
    usual = dict.fromkeys(("requests", "seconds", "requests_per_second", "tokens_per_second"), 1.0)
    usual |= dict.fromkeys(("busy", "prompt_share", "hits"), 0.5) | dict.fromkeys(
        ("failed", "waiting", "preemptions"), 0
    )
    times = {"first_token": {"p95": 1.0}, "per_token": {"p95": 1.0}, "overloaded": False}
    return Outcome(**{**usual, **times, **values})  # type: ignore[arg-type]


def test_a_goal_is_missed_above_it() -> None:
    goals, above = Goals(1.0, 1.0), {"p95": 1.01}
    assert goals.failures(outcome()) == []
    assert goals.failures(outcome(first_token=above)) == ["time to first token"]
    assert goals.failures(outcome(overloaded=True)) == ["time to first token"]
    assert goals.failures(outcome(per_token=above)) == ["time per token"]
    assert goals.failures(outcome(failed=1)) == ["memory: requests that do not fit at all"]


def test_the_fewest_that_are_enough() -> None:
    found = search(30.0, Goals(0.5, 0.08))
    count = found.replicas(30.0)
    assert count is not None
    assert count > 1
    assert found.meets_goals(30.0, count)
    assert not found.meets_goals(30.0, count - 1)
    assert found.replicas(30.0, guess=4 * count) == count or found.meets_goals(30.0, count)


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
    broken = found.first_failure(most)
    assert broken is not None
    assert broken.times > 1
    assert broken.what.startswith("time")
    assert len(found.day(DAYS["flat"], most)) == 1


def test_ten_thousand_replicas_are_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {(10_000, 100): 0.002}
    monkeypatch.setattr("pellucid.capacity.search.router_seconds", lambda *of: measured[of])
    found = search(1_000_000 / 60, Goals(0.5, 0.08))
    many = found.outcome(1_000_000 / 60, 10_000)
    slice_ = found.outcome(1_000_000 / 60 * MAX_SLICE / 10_000, MAX_SLICE)
    assert many.requests == slice_.requests
    front = found.front_processes(10_000, many)
    assert front.ingresses > 10
    assert front.router_seconds == 0.002


def test_few_requests_are_simulated_until_percentiles_mean_something() -> None:
    found = search(0.02, Goals(1.0, 0.2))
    assert found.outcome(0.02, 1).requests > 100
    assert search(0.005, Goals(1e-6, 1e-6)).replicas(0.005) is None


def test_a_first_prompt_that_no_cache_has_decides_nothing() -> None:
    traffic = Traffic(Lengths(256, 256), Lengths(20, 20), rate=30.0, shared=192)
    slow = Search(traffic, Goals(0.15, 0.1), ROOM, COSTS, warm=6.0, seconds=12.0)
    assert not slow.fails_alone
    assert slow.replicas(30.0) is not None


def test_conversations_come_at_the_rate_that_was_asked_for() -> None:
    for turns in (1, 4, 10):
        found = search(6.0, Goals(1.0, 0.2), turns=turns, think=20.0).outcome(6.0, 8)
        assert found.requests_per_second == pytest.approx(6.0, rel=0.25)


class Counted(Search):
    """Counts the requests of simulations."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.outcomes: dict[int, Outcome] = {}

    def outcome(self, rate: float, replicas: int) -> Outcome:
        found = super().outcome(rate, replicas)
        self.outcomes[id(found)] = found
        return found

    @property
    def requests(self) -> int:
        return sum(found.requests for found in self.outcomes.values())


def counted(prompt: int, rate: float, goals: Goals, costs: StepCosts = COSTS) -> Counted:
    traffic = Traffic(Lengths(prompt, prompt), Lengths(50, 50), rate=rate)
    room = ReplicaCapacity([LayerShape(1, 64, 64)], [1 << 26], 1 << 40, StepLimits(1 << 18))
    return Counted(traffic, goals, room, costs)


@pytest.mark.parametrize(
    ("prompt", "rate", "goals", "costs"),
    [
        (7000, 0.01, Goals(1000.0, 10.0), COSTS),  # long prompts, few of them
        (100, 1e6, Goals(1.0, 1.0), StepCosts({1: 1e-9, 64: 1e-8}, {1: 1e-9, 256: 1e-8})),  # absurd machines
        (100, 1e6, Goals(1.0, 1.0), COSTS),
        (30_000, 0.001, Goals(1e5, 1e3), COSTS),
    ],
)
def test_a_search_is_bounded(prompt: int, rate: float, goals: Goals, costs: StepCosts) -> None:
    found = counted(prompt, rate, goals, costs)
    found.replicas(rate)
    assert found.requests <= 20 * MAX_EXCESS * found.request_budget
    assert MIN_SLOW_REQUESTS <= found.request_budget < 2000


def test_hopeless_rates_are_not_simulated() -> None:
    found = counted(100, 1e9, Goals(1.0, 1.0))
    assert found.replicas(1e9) is None
    assert found.requests == 0
    assert found.min_step_seconds == pytest.approx(50 * 0.1 / 64 + 100 * 0.2 / 256)


def test_conversations_that_have_begun_are_bounded() -> None:
    traffic = Traffic(Lengths(8, 8), Lengths(2, 2), rate=1e6, turns=2, think=1e6)
    assert sum(1 for _ in traffic.ongoing()) == MAX_ONGOING
    assert traffic.longest == 20
    wide = Traffic(Lengths(100, 50, normal=True), Lengths(2, 2), rate=1.0)
    assert wide.longest == 302
    assert max(len(wide.session(n).request()[0]) for n in range(2000)) <= 300
