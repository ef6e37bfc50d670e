"""Simulated traffic: arrival times, lengths of prompts and answers, shared prefixes, and conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pellucid.measure.server_load import Lengths, arrivals

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
        """Tokens of the longest conversation, with its answers."""
        return self.turns * (self.prompt.longest + self.tokens.longest)

    def session(self, number: int) -> Session:
        """Return session ``number``."""
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
        """Yield the start times of sessions."""
        return arrivals(self.seed, (self.rate or 1.0) / self.turns)


@dataclass(frozen=True)
class Replay:
    """Known requests: the prompt and the number of answer tokens of each.

    The requests arrive at ``times``, or ``clients`` clients send one request after the other.
    """

    requests: Sequence[tuple[Sequence[int], int]]
    times: Sequence[float] = ()
    clients: int | None = None
    think: float = 0.0

    def session(self, number: int) -> KnownSession:
        """Return the session of request ``number``."""
        return KnownSession(*self.requests[number])

    def ongoing(self) -> Iterator[tuple[float, KnownSession]]:
        """Yield no sessions, because all sessions begin within the simulation."""
        return iter(())

    def arrivals(self) -> Iterator[float]:
        """Yield the times of the requests."""
        return iter(self.times)


@dataclass(eq=False)
class KnownSession:
    """A session of one known request."""

    prompt: Sequence[int]
    tokens: int
    remaining: int = 0

    def request(self) -> tuple[list[int], int]:
        """Return the prompt and the number of answer tokens."""
        return list(self.prompt), self.tokens

    def answered(self, answer: Sequence[int]) -> None:
        """Ignore the answer, because no request follows."""


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
        """Return the next prompt and the number of its answer tokens."""
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
        """Append the answer to the conversation."""
        self.text += answer

    def append(self, count: int) -> None:
        """Append ``count`` tokens that no other conversation has."""
        start = (OWN_TOKENS + (self.number << 20)) + len(self.text)
        self.text += range(start, start + count)
