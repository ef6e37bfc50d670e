"""How many replicas some traffic needs, over a day, and what fails first when there is more of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from pellucid.capacity.machines import Machine
from pellucid.capacity.replica import ReplicaRoom
from pellucid.capacity.simulate import Outcome, Simulation, router_seconds
from pellucid.capacity.step_costs import StepCosts
from pellucid.capacity.traffic import Traffic
from pellucid.kernels.attention.kv_layout import PAGE

LEAST, FEWEST = 200, 16  # requests of a simulation at least; and where a request takes long to simulate
SLICE, FEW = 64, 8
"""Replicas that are simulated at most: more of them are as many such slices side by side. As few as ``FEW``, where
more would have more requests than are affordable."""
WORK = 500.0
"""Milliseconds that a simulation may take on a core of Zen 4: 0.45 for a request, and more for the pages of its prompt.
"""
LIFETIMES, HARD = 5, 2
"""A simulation lasts at least ``LIFETIMES`` of a request, but has at most ``HARD`` times the affordable requests."""
WARM, SECONDS = 30.0, 60.0  # simulated seconds until what comes counts, and in which it does
MOST_REPLICAS = 100_000
CLOSE = 0.02  # the part of the number of replicas that is not looked at any closer
INGRESS_TOKENS = 25_000
"""Tokens a second that one process in front passes on (``bench/cluster.py ingress``, on a core of Zen 4)."""
INGRESS_SHARE = 0.7  # of a process's time that is planned
DAYS: Mapping[str, Sequence[float]] = {
    "flat": (1.0,) * 24,
    "office": (
        *(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0),
        *(0.75, 0.75, 1.0, 1.0, 1.0, 0.75, 0.5, 0.5, 0.25, 0.25, 0.1, 0.1),
    ),
}
"""The parts of the highest rate by the hour."""
Told = Callable[[str], object]


@dataclass(frozen=True)
class Goals:
    """What 95 of 100 requests must see: seconds to the first token, and of a token after it."""

    first_token: float
    per_token: float

    def failures(self, outcome: Outcome) -> list[str]:
        """What is not reached."""
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
    """The hours of a day with the same rate, and the replicas that they need."""

    hours: tuple[int, ...]
    rate: float
    replicas: int
    outcome: Outcome


@dataclass(frozen=True)
class Front:
    """What the processes in front need: seconds of the router for a request, and how many processes."""

    router_seconds: float
    ingresses: int


@dataclass(frozen=True)
class Break:
    """At so many ``times`` the highest rate, ``what`` fails first, ``why``."""

    times: float
    what: str
    why: str
    outcome: Outcome


class Search:
    """Simulates ``traffic`` (with a rate, the highest of the day) on replicas that are all alike.

    What comes in ``seconds`` counts, after ``warm`` seconds.
    """

    def __init__(
        self,
        traffic: Traffic,
        goals: Goals,
        room: ReplicaRoom,
        costs: StepCosts,
        told: Told = lambda what: None,
        *,
        warm: float = WARM,
        seconds: float = SECONDS,
    ) -> None:
        self.traffic, self.goals, self._room, self._costs, self._told = traffic, goals, room, costs, told
        self._warm, self._seconds = warm, seconds
        self._known: dict[tuple[float, int], Outcome] = {}

    def outcome(self, rate: float, replicas: int) -> Outcome:
        """What comes of a rate on so many replicas: what is counted is of one slice, what is per second of all."""
        found = self._known.get((rate, replicas))
        if found is None:
            self._told(f"{replicas:,} replicas, {rate:,.4g} requests/s")
            count, warm, seconds = self._size(rate, replicas)
            traffic = replace(self.traffic, rate=rate * count / replicas)
            of_slice = Simulation(traffic, count, self._room, self._costs).run(seconds=seconds, warm=warm)
            found = self._known[rate, replicas] = replace(
                of_slice,
                requests_per_second=of_slice.requests_per_second * replicas / count,
                tokens_per_second=of_slice.tokens_per_second * replicas / count,
            )
        return found

    def _size(self, rate: float, replicas: int) -> tuple[int, float, float]:
        """The simulated replicas, and the seconds before and while requests count.

        A simulation has the affordable number of requests at most, unless they would not last ``LIFETIMES``.
        """
        count, each = min(replicas, SLICE), rate / replicas
        seconds = max(self._seconds, min(LEAST, self.affordable) / (each * count))
        span = self._warm + seconds
        if (wanted := each * count * span) > self.affordable:
            count = max(min(count, FEW), int(count * self.affordable / wanted))
        part = min(self.affordable / (each * count * span), 1.0)
        part = min(max(part, LIFETIMES * self._alone_seconds / span), 1.0)
        part = min(part, HARD * self.affordable / (each * count * span))
        return count, part * self._warm, part * seconds

    @cached_property
    def affordable(self) -> int:
        """The number of requests that a simulation may have."""
        pages = self.traffic.longest // PAGE
        return max(FEWEST, int(WORK / (0.45 + 0.03 * pages + 1e-4 * pages**2)))

    @cached_property
    def least_seconds(self) -> float:
        """A lower bound of the seconds of a replica's steps that a request takes."""
        prompt, tokens = self.traffic.prompt.usual, self.traffic.tokens.usual
        of_row = min(seconds / n for n, seconds in self._costs.rows.items())
        of_prompt = min(seconds / n for n, seconds in self._costs.prompts.items())
        seconds = tokens * max(of_row, 0.0) + max(prompt - self.traffic.shared, 0) * max(of_prompt, 0.0)
        return seconds * min(self._costs.noise)

    def enough(self, rate: float, replicas: int) -> bool:
        """Whether so many replicas reach the goals."""
        return not self.goals.failures(self.outcome(rate, replicas))

    def replicas(self, rate: float, guess: int = 1) -> int | None:
        """The fewest replicas that reach the goals; None if no number does."""
        if self.alone_fails:
            return None
        low = int(rate * self.least_seconds)  # they are busy without a break, so they cannot be enough
        if low >= MOST_REPLICAS:
            return None
        high = max(guess, low + 1)
        while not self.enough(rate, high):
            if high >= MOST_REPLICAS:
                return None
            low, high = high, 2 * high
        while high - low > max(1, int(CLOSE * high)):
            middle = (low + high) // 2
            if self.enough(rate, middle):
                high = middle
            else:
                low = middle
        return high

    @cached_property
    def _alone(self) -> Outcome:
        """Simulated latency of requests that are alone on a replica."""
        self._told("a request that is alone")
        traffic = replace(self.traffic, rate=None, clients=1, think=0.0)
        return Simulation(traffic, 1, self._room, self._costs).run(requests=min(40, self.affordable))

    @property
    def _alone_seconds(self) -> float:
        """Seconds from a request that is alone to the end of its answer."""
        alone = self._alone
        return alone.first_token["p50"] + self.traffic.tokens.usual * alone.per_token["p50"]

    @cached_property
    def alone_fails(self) -> bool:
        """Whether most requests miss the goals even where each is alone on a replica."""
        alone = self._alone
        return not (
            alone.first_token["p50"] <= self.goals.first_token
            and alone.per_token["p50"] <= self.goals.per_token
            and not alone.failed
        )

    def day(self, shape: Sequence[float], most: int) -> list[Hours]:
        """The hours by their rates, from the highest; ``most`` replicas reach the goals at that."""
        found = []
        for part in sorted(set(shape), reverse=True):
            rate, count = part * (self.traffic.rate or 0.0), -(-int(100 * part) * most // 100)
            if count < SLICE:  # otherwise there are only fewer of the same slices
                count = self.replicas(rate, max(1, count)) or most
            hours = tuple(hour for hour, one in enumerate(shape) if one == part)
            found.append(Hours(hours, rate, count, self.outcome(rate, count)))
        return found

    def breaks(self, replicas: int) -> Break | None:
        """What fails first if more comes than so many replicas are for."""
        peak = self.traffic.rate or 0.0
        for times in (1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0):
            outcome = self.outcome(times * peak, replicas)
            if failed := self.goals.failures(outcome):
                return Break(times, failed[0], self._why(failed[0], outcome), outcome)
        return None

    def _why(self, what: str, outcome: Outcome) -> str:
        share = f"{outcome.prompt_share:.0%}"
        if outcome.preemptions:
            return f"memory: {outcome.preemptions:,} times a request lost its pages to another"
        if what == "time per token":
            return f"steps with many sequences: {share} of their time is prefill of others"
        if outcome.prompt_share > 0.5:
            return f"prefill: it takes {share} of the steps' time"
        return f"steps: replicas compute {outcome.busy:.0%} of the time, and requests wait"

    def front(self, replicas: int, outcome: Outcome) -> Front:
        """What the processes in front need; ``outcome`` is that of the highest rate."""
        seconds = router_seconds(replicas, self.traffic.prompt.usual)
        rate = self.traffic.rate or 0.0
        share = rate * seconds + outcome.tokens_per_second / INGRESS_TOKENS
        return Front(seconds, max(1, -(-int(100 * share) // int(100 * INGRESS_SHARE))))


@dataclass(frozen=True)
class KindCapacity:
    """What traffic needs of a kind of machines, ``stages`` of which are a replica.

    The ``day`` begins with its busiest hours; it is empty if no number of machines reaches the goals.
    """

    machine: Machine
    stages: int
    day: Sequence[Hours]
    front: Front | None
    breaks: Break | None

    @classmethod
    def of(cls, machine: Machine, stages: int, search: Search, shape: Sequence[float]) -> KindCapacity:
        """Search for it; ``shape`` are the parts of the highest rate by the hour."""
        most = search.replicas(search.traffic.rate or 0.0)
        if most is None:
            return cls(machine, stages, [], None, None)
        day = search.day(shape, most)
        return cls(machine, stages, day, search.front(most, day[0].outcome), search.breaks(most))

    @property
    def machines(self) -> int:
        """How many machines the busiest hour needs."""
        return self.day[0].replicas * self.stages
