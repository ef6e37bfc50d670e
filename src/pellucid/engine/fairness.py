"""Fair shares of the machine between clients: the client that has used the least time comes first.

Each client has a counter of the step seconds that its requests have used. A client that arrives or returns starts at
the lowest counter of the present clients, so that absent clients do not save up time. This is the virtual token counter
of Sheng et al. 2024, "Fairness in Serving Large Language Models", counted in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class FairShares:
    """Counters of the clients with jobs, and of absent clients with a counter above the lowest of these counters."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._jobs: Counter[str] = Counter()

    def enter(self, client: str) -> None:
        """Count a new job of the client."""
        if not self._jobs[client]:
            floor = self._least()
            self._seconds[client] = max(self._seconds.get(client, floor), floor)
        self._jobs[client] += 1

    def leave(self, client: str) -> None:
        """Count an ended job of the client."""
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
        """Charge the ``seconds`` of a step to its clients, in proportion to their ``tokens``.

        This includes a client whose last job failed in the step. If no client has jobs any more, nobody is charged.
        """
        total, floor = sum(tokens.values()), self._least()
        for client, count in tokens.items() if self._jobs else ():
            self._seconds[client] = self._seconds.get(client, floor) + seconds * count / total

    def _least(self) -> float:
        """The lowest counter of the clients with jobs."""
        return min((self._seconds[one] for one in self._jobs), default=0.0)

    @property
    def contended(self) -> bool:
        """True if several clients have jobs."""
        return len(self._jobs) > 1

    def used(self, client: str) -> float:
        """Seconds that the client has used. The client with the lowest value comes first."""
        return self._seconds.get(client, 0.0)
