"""A discrete-event simulation: requests arrive, the real router sends them to replicas, and replicas run steps."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from pellucid.capacity.simulated_replica import ReplicaCapacity, SimulatedReplica, SimulatedRequest
from pellucid.capacity.step_costs import StepCosts
from pellucid.cluster.routing import ChosenReplica, ReplicaLoad, choose
from pellucid.measure.server_load import Lengths, arrivals, percentiles

MAX_ONGOING = 10_000
"""Maximum number of ongoing conversations. No simulation can finish more."""
OWN_TOKENS = 1 << 40
"""First placeholder token id of a session's own tokens. Ids of shared prefixes are lower."""


@dataclass(frozen=True)
class Traffic:
    """Sessions of ``turns`` requests. Each request follows ``think`` seconds after the previous answer.

    A prompt is the conversation so far and ``prompt`` new tokens. The first prompt of a session begins with one of
    ``prefixes`` shared texts, whose ``shared`` tokens count as new tokens. Answers have ``tokens`` tokens. Sessions
    begin at random times, with ``rate`` requests per second in all, or ``clients`` clients send one request after the
    other. The same ``seed`` gives the same traffic.
    """

    prompt: Lengths
    tokens: Lengths
    rate: float | None = None
    clients: int | None = None
    shared: int = 0
    prefixes: int = 1
    turns: int = 1
    think: float = 20.0
    seed: int = 0

    @property
    def longest(self) -> int:
        return self.turns * (self.prompt.longest + self.tokens.longest)

    def session(self, number: int) -> Session:
        return Session(self, number, random.Random(f"{self.seed} {number}"))

    def ongoing(self) -> Iterator[tuple[float, Session]]:
        """Yield the sessions that began before the simulation, as (time of the next request, session).

        Their number is the average number of sessions between two requests.
        """
        rng = random.Random(f"{self.seed} begun")
        count = min(round((self.rate or 0.0) * self.think), MAX_ONGOING)
        for number in range(count if self.turns > 1 else 0):
            session = self.session(-1 - number)
            for _ in range(rng.randrange(self.turns)):
                _, count = session.request()
                session.append(count)
            yield rng.random() * self.think, session

    def arrivals(self) -> Iterator[float]:
        return arrivals(self.seed, (self.rate or 1.0) / self.turns)


@dataclass(eq=False)
class Session:
    """A conversation. Token ids are placeholders, because only their equality matters."""

    traffic: Traffic
    number: int
    rng: random.Random
    remaining: int = 0
    text: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.remaining = self.traffic.turns

    def request(self) -> tuple[list[int], int]:
        traffic = self.traffic
        count = min(traffic.prompt.draw(self.rng), traffic.prompt.longest)
        self.remaining -= 1
        if not self.text:
            prefix = self.rng.randrange(traffic.prefixes) << 20
            self.text = list(range(prefix, prefix + min(traffic.shared, count)))
            count -= len(self.text)
        self.append(count)
        return list(self.text), min(traffic.tokens.draw(self.rng), traffic.tokens.longest)

    def answered(self, answer: Sequence[int]) -> None:
        self.text += answer

    def append(self, count: int) -> None:
        """Append ``count`` tokens that no other conversation has."""
        start = (OWN_TOKENS + (self.number << 20)) + len(self.text)
        self.text += range(start, start + count)


REFUSAL_SECONDS = 0.001  # minimum seconds to refuse a request
REPLICAS_PER_INGRESS = 16  # number of replicas behind one server process
OVERLOAD = 400
"""Maximum mean number of requests per replica. Above it, a simulation ends as overloaded: no goal is reachable."""


@dataclass(frozen=True)
class Outcome:
    """Results of the requests that arrived within ``seconds``.

    ``failed`` counts requests that do not fit into the context or into a replica. ``waiting`` counts requests that have
    no token at the end; their waiting time counts as time to the first token. ``first_token`` and ``per_token`` are
    percentiles in seconds. ``busy`` is the mean fraction of time in which replicas run steps, and ``prompt_share`` is
    the fraction of this time for prefill. ``hits`` is the fraction of the full pages of prompts that the chosen replica
    had cached. ``overloaded`` is True if the simulation ended early because too many requests were running.
    """

    requests: int
    failed: int
    waiting: int
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    first_token: dict[str, float]
    per_token: dict[str, float]
    busy: float
    prompt_share: float
    hits: float
    preemptions: int
    overloaded: bool


class Simulation:
    """Simulates ``replicas`` under ``traffic``.

    ``route`` chooses the replica of a prompt. By default it is the real router.
    """

    def __init__(
        self,
        traffic: Traffic,
        replicas: int,
        capacity: ReplicaCapacity,
        costs: StepCosts,
        route: Callable[[Sequence[int], Sequence[ReplicaLoad]], ChosenReplica] = choose,
    ) -> None:
        self.traffic, self._costs, self._choose = traffic, costs, route
        self._context = capacity.limits.context
        self.loads = [ReplicaLoad(f"replica {n}") for n in range(replicas)]
        rng = random.Random(0)
        self.replicas = [SimulatedReplica(capacity, costs, 1e3 * rng.random()) for _ in self.loads]
        self._by_load = dict(zip(self.loads, self.replicas))
        self._load_of = dict(zip(self.replicas, self.loads))
        for load, replica in self._by_load.items():
            replica.cache.prefixes.listener = partial(_page, load)
        self._events: list[tuple[float, int, Callable[[float], object]]] = []
        self._order, self._sessions, self._numbers = itertools.count(), itertools.count(), itertools.count(1)
        self._arrivals = traffic.arrivals()
        self.ended: list[SimulatedRequest] = []
        self._running: set[SimulatedRequest] = set()
        self._requests, self._max_requests = 0, 0
        self._hits = self._pages = 0
        self._last, self._warm, self._arrivals_end = 0.0, 0.0, float("inf")
        self._marks: dict[float, tuple[float, float]] = {0.0: (0.0, 0.0)}
        self._overloaded, self._front = False, 0.0
        self._fronts = max(1, replicas // REPLICAS_PER_INGRESS)

    def run(self, *, requests: int | None = None, seconds: float | None = None, warm: float = 0.0) -> Outcome:
        """Run ``requests`` requests to their end, or the requests that arrive in ``seconds`` after ``warm`` seconds.

        A run with ``seconds`` lasts for ``warm`` plus twice ``seconds``. Requests that have no token at the end of the
        run count as ``waiting``.
        """
        traffic, self._max_requests = self.traffic, requests if requests is not None else 1 << 62
        if traffic.clients is not None:
            for _ in range(traffic.clients):
                self._at(0.0, self._new_session)
        else:
            self._next_arrival()
            for when, session in self.traffic.ongoing():
                self._at(when, partial(self._ask, session))
        stop, self._warm = float("inf"), warm
        if seconds is not None:
            stop, self._arrivals_end = warm + 2 * seconds, warm + seconds
            for when in (warm, self._arrivals_end):
                self._at(when, self._mark)
        now, full = 0.0, OVERLOAD * len(self.replicas)
        while self._events and self._events[0][0] <= stop:
            now, _, act = heapq.heappop(self._events)
            act(now)
            if seconds is not None and len(self._running) > full:
                self._overloaded = True
                return self._outcome(min(warm, now / 2), now, now)
        end = self._last if seconds is None else warm + seconds
        return self._outcome(warm, end, now)

    def _at(self, when: float, act: Callable[[float], object]) -> None:
        heapq.heappush(self._events, (when, next(self._order), act))

    def _mark(self, now: float) -> tuple[float, float]:
        """Record and return the seconds of all steps until now, and the seconds that prefill added to the steps."""
        busy = sum(replica.busy_until(now) for replica in self.replicas)
        self._marks[now] = busy, sum(replica.prompts for replica in self.replicas)
        return self._marks[now]

    def _next_arrival(self) -> None:
        when = next(self._arrivals, None) if self._requests < self._max_requests else None
        if when is not None and when <= self._arrivals_end:
            self._at(when, self._arrive)

    def _arrive(self, now: float) -> None:
        self._new_session(now)
        self._next_arrival()

    def _new_session(self, now: float) -> None:
        if self._requests < self._max_requests and now <= self._arrivals_end:
            self._ask(self.traffic.session(next(self._sessions)), now)

    def _ask(self, session: Session, now: float) -> None:
        if self._requests >= self._max_requests or now > self._arrivals_end:
            return
        self._requests += 1
        prompt, tokens = session.request()
        free = self._context - len(prompt)
        request = SimulatedRequest(next(self._numbers), prompt, min(tokens, free), now, session)
        self._running.add(request)
        if free <= 0:  # a server refuses the prompt
            request.failed, request.last = True, now + max(self._costs.request, REFUSAL_SECONDS)
            self._at(request.last, partial(self._end, request))
            return
        # A server parses requests one after the other. Each response that it streams delays a new request.
        self._front = max(now, self._front) + self._costs.request / self._fronts
        streams = sum(1 for running in self._running if running.answer) / self._fronts
        self._at(self._front + self._costs.stream * streams, partial(self._route, request))

    def _route(self, request: SimulatedRequest, now: float) -> None:
        route = self._choose(request.prompt, self.loads)
        load, names = route.replica, route.names
        if now >= self._warm:
            self._hits, self._pages = self._hits + route.pages, self._pages + len(names)
        load.expect(names)
        load.running += 1
        replica = self._by_load[load]
        replica.add(request, now)
        self._follow(replica)

    def _follow(self, replica: SimulatedReplica) -> None:
        if replica.time is not None:
            self._at(replica.time, partial(self._step_ends, replica))

    def _step_ends(self, replica: SimulatedReplica, now: float) -> None:
        if replica.time != now:  # a new request has cut these steps short, so their end is already past
            return
        ended = replica.end_step()
        load = self._load_of[replica]
        load.step_seconds = replica.step_seconds
        for request in ended:
            load.running -= 1
            self._end(request, now)
        self._follow(replica)

    def _end(self, request: SimulatedRequest, now: float) -> None:
        self._running.discard(request)
        self.ended.append(request)
        self._last = max(self._last, now)
        session: Session = request.session
        session.answered(request.answer)
        if session.remaining and not request.failed:
            self._at(now + self.traffic.think, partial(self._ask, session))
        elif self.traffic.clients is not None:
            self._at(now, self._new_session)

    def _outcome(self, warm: float, end: float, now: float) -> Outcome:
        """Return the outcome of the requests that arrived between ``warm`` and ``end``, as known at ``now``."""
        counted = [request for request in self.ended if request.arrival >= warm]
        good = [request for request in counted if not request.failed]
        begun = [request for request in self._running if request.answer and request.arrival >= warm]
        waiting = [now - request.arrival for request in self._running if not request.answer and request.arrival >= warm]
        seconds = max(end - warm, 1e-9)
        tokens = sum(_tokens_between(request, warm, end) for request in (*self.ended, *self._running))
        before, after = self._marks.get(warm, (0.0, 0.0)), self._marks.get(end) or self._mark(now)
        busy, prompts = (b - a for a, b in zip(before, after))
        return Outcome(
            requests=len(counted) + len(begun) + len(waiting),
            failed=len(counted) - len(good),
            waiting=len(waiting),
            seconds=seconds,
            requests_per_second=sum(warm <= request.last <= end for request in self.ended) / seconds,
            tokens_per_second=tokens / seconds,
            first_token=percentiles([*(request.first - request.arrival for request in (*good, *begun)), *waiting]),
            per_token=percentiles([request.per_token for request in good if len(request.answer) > 1]),
            busy=min(busy / (seconds * len(self.replicas)), 1.0),
            prompt_share=prompts / max(busy, 1e-9),
            hits=self._hits / self._pages if self._pages else 0.0,
            preemptions=sum(replica.preemptions for replica in self.replicas),
            overloaded=self._overloaded,
        )


def _page(load: ReplicaLoad, name: int, comes: bool) -> None:
    if comes:
        load.pages.add(name)
    else:
        load.evict([name])


def _tokens_between(request: SimulatedRequest, start: float, end: float) -> float:
    """Return the number of a request's tokens between two times, if the tokens are generated at an even rate."""
    if not request.answer:
        return 0.0
    if request.last <= request.first:
        return len(request.answer) if start <= request.first <= end else 0.0
    part = (min(request.last, end) - max(request.first, start)) / (request.last - request.first)
    return len(request.answer) * min(max(part, 0.0), 1.0)


def router_seconds(replicas: int, prompt: int) -> float:
    """Measure the router's seconds for a request of ``prompt`` tokens, with ``replicas`` replicas."""
    loads, rng = [ReplicaLoad(f"replica {n}", step_seconds=0.01) for n in range(replicas)], random.Random(1)
    prompts = [[rng.randrange(1 << 20) for _ in range(prompt)] for _ in range(5)]
    for load in loads:
        load.pages = {rng.getrandbits(62) for _ in range(64)}
        load.running = rng.randrange(4)
    taken = []
    for ids in prompts:
        start = time.perf_counter()
        choose(ids, loads)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
