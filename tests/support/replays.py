"""Simulated traffic of known requests, as a real load has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pellucid.capacity.simulate import Session, Traffic
from pellucid.measure.server_load import Lengths

ONE = Lengths(1, 1)


class KnownSession(Session):
    """A session of one known request."""

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        self.prompt, self.count, self.remaining = prompt, count, 0

    def request(self) -> tuple[list[int], int]:
        return list(self.prompt), self.count

    def answered(self, answer: Sequence[int]) -> None:
        """No request follows."""


@dataclass(frozen=True)
class Replay(Traffic):
    """Known ``requests``: the prompt and the number of answer tokens of each.

    The requests arrive at ``times``, or ``clients`` clients send one request after the other.
    """

    prompt: Lengths = ONE
    tokens: Lengths = ONE
    think: float = 0.0
    requests: Sequence[tuple[Sequence[int], int]] = ()
    times: Sequence[float] = ()

    def session(self, number: int) -> KnownSession:
        return KnownSession(*self.requests[number])

    def arrivals(self) -> Iterator[float]:
        return iter(self.times)
