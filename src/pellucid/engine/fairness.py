"""Fair shares of the machine between clients: the client that has used less comes first.

Each client has a counter of the seconds of steps that its requests have used. A client that comes, or returns, starts
at the least counter of the clients that are there, so that nobody saves up time by being absent (the virtual token
counter of Sheng et al. 2024, "Fairness in Serving Large Language Models", counted in seconds).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class FairShares:
    """Counters of the clients that have jobs, and of absent clients with a higher count than a present client."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._jobs: Counter[str] = Counter()

    def enter(self, client: str) -> None:
        """A job of the client comes."""
        if not self._jobs[client]:
            floor = self._least()
            self._seconds[client] = max(self._seconds.get(client, floor), floor)
        self._jobs[client] += 1

    def leave(self, client: str) -> None:
        """A job of the client has ended."""
        self._jobs[client] -= 1
        if self._jobs[client]:
            return
        del self._jobs[client]
        floor = self._least()
        self._seconds = {
            one: used
            for one, used in self._seconds.items()
            if self._jobs and (one in self._jobs or used > floor)
        }

    def charge(self, tokens: Mapping[str, int], seconds: float) -> None:
        """A step took ``seconds``; each client pays for its part of the step's ``tokens``.

        A client whose last job has failed in the step pays too, unless no client has jobs.
        """
        total, floor = sum(tokens.values()), self._least()
        for client, count in tokens.items() if self._jobs else ():
            self._seconds[client] = self._seconds.get(client, floor) + seconds * count / total

    def _least(self) -> float:
        """The least counter of the clients that have jobs."""
        return min((self._seconds[one] for one in self._jobs), default=0.0)

    @property
    def contended(self) -> bool:
        """True if several clients have jobs."""
        return len(self._jobs) > 1

    def used(self, client: str) -> float:
        """Seconds that the client has used: the client with the least comes first."""
        return self._seconds.get(client, 0.0)
