"""The number of replicas that traffic needs over a day, and the first failure when the traffic grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pellucid.capacity.machines import Machine
from pellucid.capacity.simulate import Outcome, Simulation, Traffic, router_seconds
from pellucid.capacity.simulated_replica import ReplicaCapacity
from pellucid.capacity.step_costs import StepCosts
from pellucid.kernels.attention.kv_layout import PAGE

MIN_REQUESTS = 200  # minimum requests of a simulation
MIN_SLOW_REQUESTS = 16  # minimum requests of a simulation whose requests take long to simulate
MAX_SLICE, MIN_SLICE = 64, 8
"""Maximum number of simulated replicas. A larger fleet is treated as several equal slices, and one slice is simulated.

The slice shrinks to ``MIN_SLICE`` replicas if its requests would exceed the budget.
"""
SIMULATION_MILLISECONDS = 500.0
"""Milliseconds of a simulation on a core of Zen 4. To simulate a request takes 0.45 ms, and more for a long prompt."""
MIN_LIFETIMES, MAX_EXCESS = 5, 2
"""A simulation lasts at least ``MIN_LIFETIMES`` times as long as a request.

It has at most ``MAX_EXCESS`` times as many requests as the budget.
"""
WARM_UP, SECONDS = 30.0, 60.0  # simulated seconds of warm-up, and of measurement
MAX_REPLICAS = 100_000
PRECISION = 0.02  # relative precision of the number of replicas
INGRESS_TOKENS = 25_000
"""Tokens per second that an ingress process forwards (``bench/cluster.py ingress``, on a core of Zen 4)."""
INGRESS_SHARE = 0.7  # planned utilization of an ingress process
DAYS: Mapping[str, Sequence[float]] = {
    "flat": (1.0,) * 24,
    "office": (
        *(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0),
        *(0.75, 0.75, 1.0, 1.0, 1.0, 0.75, 0.5, 0.5, 0.25, 0.25, 0.1, 0.1),
    ),
}
"""Fractions of the highest rate, for each hour of the day."""
Progress = Callable[[str], object]


@dataclass(frozen=True)
class Goals:
    """Limits for 95 of 100 requests: seconds to the first token, and seconds per later token."""

    first_token: float
    per_token: float

    def failures(self, outcome: Outcome) -> list[str]:
        failed = []
        if outcome.overloaded or outcome.first_token["p95"] > self.first_token:
            failed.append("time to first token")
        if outcome.per_token["p95"] > self.per_token:
            failed.append("time per token")
        if outcome.failed:
            failed.append("memory: requests that do not fit at all")
        return failed


@dataclass(frozen=True)
class Hours:
    hours: tuple[int, ...]
    rate: float
    replicas: int
    outcome: Outcome


@dataclass(frozen=True)
class FrontProcesses:
    """Requirements of the processes in front of replicas: router seconds per request, and the number of ingresses."""

    router_seconds: float
    ingresses: int


@dataclass(frozen=True)
class FirstFailure:
    """The first failure under more load: ``what`` fails at ``times`` times the highest rate, and ``why``."""

    times: float
    what: str
    why: str
    outcome: Outcome


class Search:
    """Simulates ``traffic`` on equal replicas. The rate of ``traffic`` is the highest rate of the day.

    Requests count if they arrive within ``seconds`` after a warm-up of ``warm`` seconds.
    """

    def __init__(
        self,
        traffic: Traffic,
        goals: Goals,
        capacity: ReplicaCapacity,
        costs: StepCosts,
        progress: Progress = lambda what: None,
        *,
        warm: float = WARM_UP,
        seconds: float = SECONDS,
    ) -> None:
        self.traffic, self.goals, self._capacity, self._costs = traffic, goals, capacity, costs
        self._progress, self._warm, self._seconds = progress, warm, seconds
        self._known: dict[tuple[float, int], Outcome] = {}

    def outcome(self, rate: float, replicas: int) -> Outcome:
        """Return the simulated latency and throughput of ``replicas`` at ``rate``.

        Counts refer to the simulated slice. Rates per second refer to all replicas.
        """
        outcome = self._known.get((rate, replicas))
        if outcome is None:
            self._progress(f"{replicas:,} replicas, {rate:,.4g} requests/s")
            count, warm, seconds = self._size(rate, replicas)
            traffic = replace(self.traffic, rate=rate * count / replicas)
            of_slice = Simulation(traffic, count, self._capacity, self._costs).run(seconds=seconds, warm=warm)
            outcome = self._known[rate, replicas] = replace(
                of_slice,
                requests_per_second=of_slice.requests_per_second * replicas / count,
                tokens_per_second=of_slice.tokens_per_second * replicas / count,
            )
        return outcome

    def _size(self, rate: float, replicas: int) -> tuple[int, float, float]:
        """Return the number of simulated replicas, and the seconds of warm-up and of measurement.

        A simulation stays within the budget of requests, but takes at least ``MIN_LIFETIMES`` times as long as a
        request.
        """
        count, each = min(replicas, MAX_SLICE), rate / replicas
        seconds = max(self._seconds, min(MIN_REQUESTS, self.request_budget) / (each * count))
        span = self._warm + seconds
        if (expected := each * count * span) > self.request_budget:
            count = max(min(count, MIN_SLICE), int(count * self.request_budget / expected))
        part = min(self.request_budget / (each * count * span), 1.0)
        part = min(max(part, MIN_LIFETIMES * self._alone_seconds / span), 1.0)
        part = min(part, MAX_EXCESS * self.request_budget / (each * count * span))
        return count, part * self._warm, part * seconds

    @cached_property
    def request_budget(self) -> int:
        """Maximum requests of a simulation that takes about ``SIMULATION_MILLISECONDS``."""
        pages = self.traffic.longest // PAGE
        return max(MIN_SLOW_REQUESTS, int(SIMULATION_MILLISECONDS / (0.45 + 0.03 * pages + 1e-4 * pages**2)))

    @cached_property
    def min_step_seconds(self) -> float:
        prompt, tokens = self.traffic.prompt.mean_length, self.traffic.tokens.mean_length
        of_row = min(seconds / n for n, seconds in self._costs.rows.items())
        of_prompt = min(seconds / n for n, seconds in self._costs.prompts.items())
        seconds = tokens * max(of_row, 0.0) + max(prompt - self.traffic.shared, 0) * max(of_prompt, 0.0)
        return seconds * min(self._costs.noise)

    def meets_goals(self, rate: float, replicas: int) -> bool:
        return not self.goals.failures(self.outcome(rate, replicas))

    def replicas(self, rate: float, guess: int = 1) -> int | None:
        """Return the smallest number of replicas that reaches the goals; None if no number does."""
        if self.fails_alone:
            return None
        # This number of replicas would be busy all the time, so it is not enough.
        low = int(rate * self.min_step_seconds)
        if low >= MAX_REPLICAS:
            return None
        high = max(guess, low + 1)
        while not self.meets_goals(rate, high):
            if high >= MAX_REPLICAS:
                return None
            low, high = high, 2 * high
        while high - low > max(1, int(PRECISION * high)):
            middle = (low + high) // 2
            if self.meets_goals(rate, middle):
                high = middle
            else:
                low = middle
        return high

    @cached_property
    def _alone(self) -> Outcome:
        self._progress("a single request")
        traffic = replace(self.traffic, rate=None, clients=1, think=0.0)
        return Simulation(traffic, 1, self._capacity, self._costs).run(requests=min(40, self.request_budget))

    @property
    def _alone_seconds(self) -> float:
        """Seconds from the arrival of a request that runs alone to its last token."""
        alone = self._alone
        return alone.first_token["p50"] + self.traffic.tokens.mean_length * alone.per_token["p50"]

    @cached_property
    def fails_alone(self) -> bool:
        alone = self._alone
        return not (
            alone.first_token["p50"] <= self.goals.first_token
            and alone.per_token["p50"] <= self.goals.per_token
            and not alone.failed
        )

    def day(self, shape: Sequence[float], peak_replicas: int) -> list[Hours]:
        """Return the hours by rate, the highest rate first. At the highest rate ``peak_replicas`` reach the goals."""
        hours_by_rate = []
        for part in sorted(set(shape), reverse=True):
            rate, count = part * (self.traffic.rate or 0.0), -(-int(100 * part) * peak_replicas // 100)
            # A larger fleet needs no search, because at a lower rate it needs proportionally fewer slices.
            if count < MAX_SLICE:
                count = self.replicas(rate, max(1, count)) or peak_replicas
            hours = tuple(hour for hour, share in enumerate(shape) if share == part)
            hours_by_rate.append(Hours(hours, rate, count, self.outcome(rate, count)))
        return hours_by_rate

    def first_failure(self, replicas: int) -> FirstFailure | None:
        """Return the first failure of ``replicas`` under up to 8 times the highest rate; None without a failure."""
        peak = self.traffic.rate or 0.0
        for times in (1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0):
            outcome = self.outcome(times * peak, replicas)
            if failed := self.goals.failures(outcome):
                return FirstFailure(times, failed[0], self._why(failed[0], outcome), outcome)
        return None

    def _why(self, what: str, outcome: Outcome) -> str:
        share = f"{outcome.prompt_share:.0%}"
        if outcome.preemptions:
            return f"memory: {outcome.preemptions:,} preemptions, in which a request lost its pages to another request"
        if what == "time per token":
            return f"steps with many sequences: {share} of their time is prefill of other requests"
        if outcome.prompt_share > 0.5:
            return f"prefill: it takes {share} of the steps' time"
        return f"steps: replicas compute {outcome.busy:.0%} of the time, and requests wait"

    def front_processes(self, replicas: int, outcome: Outcome) -> FrontProcesses:
        """Return the requirements of the router and the ingresses, for the ``outcome`` at the highest rate."""
        seconds = router_seconds(replicas, self.traffic.prompt.mean_length)
        rate = self.traffic.rate or 0.0
        share = rate * seconds + outcome.tokens_per_second / INGRESS_TOKENS
        return FrontProcesses(seconds, max(1, -(-int(100 * share) // int(100 * INGRESS_SHARE))))


@dataclass(frozen=True)
class KindCapacity:
    """The machines of a kind that traffic needs. ``stages`` machines form a replica.

    The ``day`` begins with its busiest hours. It is empty if no number of machines reaches the goals.
    """

    machine: Machine
    stages: int
    day: Sequence[Hours]
    front_processes: FrontProcesses | None
    first_failure: FirstFailure | None

    @classmethod
    def of(cls, machine: Machine, stages: int, search: Search, shape: Sequence[float]) -> KindCapacity:
        """Search for the capacity. ``shape`` has the fraction of the highest rate for each hour of the day."""
        peak_replicas = search.replicas(search.traffic.rate or 0.0)
        if peak_replicas is None:
            return cls(machine, stages, [], None, None)
        day = search.day(shape, peak_replicas)
        front = search.front_processes(peak_replicas, day[0].outcome)
        return cls(machine, stages, day, front, search.first_failure(peak_replicas))

    @property
    def machines(self) -> int:
        return self.day[0].replicas * self.stages
