"""What users ask: when, after how long a prompt, for how long an answer, and what of the prompt others have, too."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pellucid.measure.load import Lengths, arrivals

MOST_BEGUN = 10_000  # conversations: more are more than a simulation ends with
OWN = 1 << 40
"""Placeholder token ids from here on are a session's own; those of shared beginnings are below."""


@dataclass(frozen=True)
class Traffic:
    """Sessions of ``turns`` requests, each after the answer to the one before and ``think`` seconds.

    A prompt is what was said so far, and ``prompt`` tokens more; the first one begins with one of ``prefixes`` texts
    of ``shared`` tokens, which are a part of its length. Answers have ``tokens`` tokens. Sessions begin at random
    times, so that there are ``rate`` requests per second, or ``clients`` send one request after the other. The same
    ``seed`` makes the same traffic.
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
        """The session of this number."""
        return Session(self, number, random.Random(f"{self.seed} {number}"))

    def begun(self) -> Iterator[tuple[float, Session]]:
        """The sessions that have begun before, and when each has its next request: as many as there are on average."""
        by = random.Random(f"{self.seed} begun")
        count = min(round((self.rate or 0.0) * self.think), MOST_BEGUN)
        for number in range(count if self.turns > 1 else 0):
            session = self.session(-1 - number)
            for _ in range(by.randrange(self.turns)):
                _, count = session.request()
                session.say(count)
            yield by.random() * self.think, session

    def arrivals(self) -> Iterator[float]:
        """The times at which sessions begin."""
        return arrivals(self.seed, (self.rate or 1.0) / self.turns)


@dataclass(frozen=True)
class Replay:
    """Requests that are known: the prompt of each, and how many tokens its answer has.

    They come at ``times``, or ``clients`` send one after the other.
    """

    requests: Sequence[tuple[Sequence[int], int]]
    times: Sequence[float] = ()
    clients: int | None = None
    think: float = 0.0

    def session(self, number: int) -> KnownSession:
        """The request of this number."""
        return KnownSession(*self.requests[number])

    def begun(self) -> Iterator[tuple[float, KnownSession]]:
        """None has begun before."""
        return iter(())

    def arrivals(self) -> Iterator[float]:
        """The times of the requests."""
        return iter(self.times)


@dataclass(eq=False)
class KnownSession:
    """A request that is known."""

    prompt: Sequence[int]
    tokens: int
    left: int = 0

    def request(self) -> tuple[list[int], int]:
        """The prompt, and how many tokens its answer has."""
        return list(self.prompt), self.tokens

    def answered(self, answer: Sequence[int]) -> None:
        """It was answered: nothing follows."""


@dataclass(eq=False)
class Session:
    """A conversation. Token ids are placeholders, of which only matters which are equal."""

    traffic: Traffic
    number: int
    by: random.Random
    left: int = 0
    text: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.traffic.turns

    def request(self) -> tuple[list[int], int]:
        """The next prompt, and how many tokens its answer will have."""
        traffic = self.traffic
        count = min(traffic.prompt.drawn(self.by), traffic.prompt.longest)
        self.left -= 1
        if not self.text:
            prefix = self.by.randrange(traffic.prefixes) << 20
            self.text = list(range(prefix, prefix + min(traffic.shared, count)))
            count -= len(self.text)
        self.say(count)
        return list(self.text), min(traffic.tokens.drawn(self.by), traffic.tokens.longest)

    def answered(self, answer: Sequence[int]) -> None:
        """It was answered."""
        self.text += answer

    def say(self, count: int) -> None:
        """The text goes on with so many tokens, which no other has."""
        start = (OWN + (self.number << 20)) + len(self.text)
        self.text += range(start, start + count)
