"""A discrete-event simulation: requests come, the real router sends them to replicas, and these run steps."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pellucid.capacity.replica import ReplicaRoom, SimulatedReplica, SimulatedText
from pellucid.capacity.step_costs import StepCosts
from pellucid.capacity.traffic import KnownSession, Replay, Session, Traffic
from pellucid.cluster.routing import ChosenReplica, ReplicaLoad, choose
from pellucid.measure.load import percentiles

REFUSED = 0.001  # seconds in which a request is refused, at the least
FED = 16  # replicas for which one server process is in front
TOO_MANY = 400
"""Requests that a replica has, on average, when a simulation is ended: no goal can be kept any more."""


@dataclass(frozen=True)
class Outcome:
    """What came of the requests that came in a time of ``seconds``.

    ``failed`` are those for which there was no room, in the context or on the replica. ``first_token`` and
    ``per_token`` are percentiles of seconds. ``busy`` is the mean part of the time in which replicas run steps,
    ``prompt_share`` the part of that which prompts take; ``hits`` the part of prompts' whole pages that their replica
    had. ``waiting`` are requests that had no token when the time was over; they count with the time that they had
    waited. With ``overloaded`` so many had come that the simulation was ended.
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
    """``replicas`` under some traffic. ``route`` chooses the replica of a prompt, as the router does."""

    def __init__(
        self,
        traffic: Traffic | Replay,
        replicas: int,
        room: ReplicaRoom,
        costs: StepCosts,
        route: Callable[[Sequence[int], Sequence[ReplicaLoad]], ChosenReplica] = choose,
    ) -> None:
        self.traffic, self._costs, self._choose = traffic, costs, route
        self._context = room.limits.context
        self.loads = [ReplicaLoad(f"replica {n}") for n in range(replicas)]
        by = random.Random(0)
        self.replicas = [SimulatedReplica(room, costs, 1e3 * by.random()) for _ in self.loads]
        self._by_load = dict(zip(self.loads, self.replicas))
        self._load_of = dict(zip(self.replicas, self.loads))
        for load, replica in self._by_load.items():
            replica.cache.prefixes.listener = partial(_page, load)
        self._events: list[tuple[float, int, Callable[[float], object]]] = []
        self._order, self._sessions, self._texts = itertools.count(), itertools.count(), itertools.count(1)
        self._arrivals = traffic.arrivals()
        self.ended: list[SimulatedText] = []
        self._running: set[SimulatedText] = set()
        self._asked, self._most = 0, 0
        self._hits = self._pages = 0
        self._last, self._warm, self._come_until = 0.0, 0.0, float("inf")
        self._marks: dict[float, tuple[float, float]] = {0.0: (0.0, 0.0)}
        self._overloaded, self._front = False, 0.0
        self._fronts = max(1, replicas // FED)

    def run(self, *, requests: int | None = None, seconds: float | None = None, warm: float = 0.0) -> Outcome:
        """Run so many requests to their end, or what comes in ``seconds`` after ``warm`` seconds.

        Of the latter, what has no token yet when twice the time has passed counts as ``waiting``.
        """
        traffic, self._most = self.traffic, requests if requests is not None else 1 << 62
        if traffic.clients is not None:
            for _ in range(traffic.clients):
                self._at(0.0, self._new_session)
        else:
            self._next_arrival()
            for when, session in self.traffic.begun():
                self._at(when, partial(self._ask, session))
        stop, self._warm = float("inf"), warm
        if seconds is not None:
            stop, self._come_until = warm + 2 * seconds, warm + seconds
            for when in (warm, self._come_until):
                self._at(when, self._mark)
        now, full = 0.0, TOO_MANY * len(self.replicas)
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
        """Seconds that replicas have run steps until now, and how many of them prompts took."""
        found = sum(one.busy_until(now) for one in self.replicas), sum(one.prompts for one in self.replicas)
        self._marks[now] = found
        return found

    def _next_arrival(self) -> None:
        """The next session will come."""
        when = next(self._arrivals, None) if self._asked < self._most else None
        if when is not None and when <= self._come_until:
            self._at(when, self._arrive)

    def _arrive(self, now: float) -> None:
        self._new_session(now)
        self._next_arrival()

    def _new_session(self, now: float) -> None:
        if self._asked < self._most and now <= self._come_until:
            self._ask(self.traffic.session(next(self._sessions)), now)

    def _ask(self, session: Session | KnownSession, now: float) -> None:
        """A request comes to the server, which reads it."""
        if self._asked >= self._most or now > self._come_until:
            return
        self._asked += 1
        prompt, wanted = session.request()
        left = self._context - len(prompt)
        text = SimulatedText(next(self._texts), prompt, min(wanted, left), now, session)
        self._running.add(text)
        if left <= 0:  # a server refuses it
            text.failed, text.last = True, now + max(self._costs.request, REFUSED)
            self._at(text.last, partial(self._end, text))
            return
        # A server reads one request after the other, and what it streams meanwhile keeps it from that.
        self._front = max(now, self._front) + self._costs.request / self._fronts
        streams = sum(1 for one in self._running if one.answer) / self._fronts
        self._at(self._front + self._costs.beside * streams, partial(self._route, text))

    def _route(self, text: SimulatedText, now: float) -> None:
        """The router sends a request to a replica."""
        route = self._choose(text.prompt, self.loads)
        load, names = route.replica, route.names
        if now >= self._warm:
            self._hits, self._pages = self._hits + route.pages, self._pages + len(names)
        load.expect(names)
        load.running += 1
        replica = self._by_load[load]
        replica.come(text, now)
        self._follow(replica)

    def _follow(self, replica: SimulatedReplica) -> None:
        """Be there when a replica's step ends."""
        if replica.time is not None:
            self._at(replica.time, partial(self._step_ends, replica))

    def _step_ends(self, replica: SimulatedReplica, now: float) -> None:
        if replica.time != now:  # it was cut, and has ended already
            return
        ended = replica.end_step()
        load = self._load_of[replica]
        load.step_seconds = replica.step_seconds
        for text in ended:
            load.running -= 1
            self._end(text, now)
        self._follow(replica)

    def _end(self, text: SimulatedText, now: float) -> None:
        """A request has ended; its client goes on."""
        self._running.discard(text)
        self.ended.append(text)
        self._last = max(self._last, now)
        session: Session | KnownSession = text.owner
        session.answered(text.answer)
        if session.left and not text.failed:
            self._at(now + self.traffic.think, partial(self._ask, session))
        elif self.traffic.clients is not None:
            self._at(now, self._new_session)

    def _outcome(self, warm: float, end: float, now: float) -> Outcome:
        """What came of the requests that came between ``warm`` and ``end``, as it is known ``now``."""
        counted = [text for text in self.ended if text.came >= warm]
        good = [text for text in counted if not text.failed]
        begun = [text for text in self._running if text.answer and text.came >= warm]
        waiting = [now - text.came for text in self._running if not text.answer and text.came >= warm]
        seconds = max(end - warm, 1e-9)
        tokens = sum(_made_in(text, warm, end) for text in (*self.ended, *self._running))
        before, after = self._marks.get(warm, (0.0, 0.0)), self._marks.get(end) or self._mark(now)
        busy, prompts = (b - a for a, b in zip(before, after))
        return Outcome(
            requests=len(counted) + len(begun) + len(waiting),
            failed=len(counted) - len(good),
            waiting=len(waiting),
            seconds=seconds,
            requests_per_second=sum(warm <= text.last <= end for text in self.ended) / seconds,
            tokens_per_second=tokens / seconds,
            first_token=percentiles([*(text.first - text.came for text in (*good, *begun)), *waiting]),
            per_token=percentiles(
                [(text.last - text.first) / (len(text.answer) - 1) for text in good if len(text.answer) > 1]
            ),
            busy=min(busy / (seconds * len(self.replicas)), 1.0),
            prompt_share=prompts / max(busy, 1e-9),
            hits=self._hits / self._pages if self._pages else 0.0,
            preemptions=sum(one.preemptions for one in self.replicas),
            overloaded=self._overloaded,
        )


def _page(load: ReplicaLoad, name: int, comes: bool) -> None:
    """A page of a replica comes or goes."""
    if comes:
        load.pages.add(name)
    else:
        load.lost([name])


def _made_in(text: SimulatedText, start: float, end: float) -> float:
    """How many of a request's tokens were made in a time, if they are made evenly."""
    if not text.answer:
        return 0.0
    if text.last <= text.first:
        return len(text.answer) if start <= text.first <= end else 0.0
    part = (min(text.last, end) - max(text.first, start)) / (text.last - text.first)
    return len(text.answer) * min(max(part, 0.0), 1.0)


def router_seconds(replicas: int, prompt: int, times: int = 5) -> float:
    """Seconds that the router takes for a request of ``prompt`` tokens, measured here, with so many replicas."""
    loads, rng = [ReplicaLoad(f"replica {n}", step_seconds=0.01) for n in range(replicas)], random.Random(1)
    prompts = [[rng.randrange(1 << 20) for _ in range(prompt)] for _ in range(times)]
    for load in loads:
        load.pages = {rng.getrandbits(62) for _ in range(64)}
        load.running = rng.randrange(4)
    taken = []
    for ids in prompts:
        start = time.perf_counter()
        choose(ids, loads)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
