"""The log of refused connections and messages. It has a few lines per interval, then a count of further refusals."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

MOST_LINES, SECONDS = 8, 10.0


def say(line: str) -> None:
    """Write a line to the server's log."""
    print(line, file=sys.stderr, flush=True)


class RefusalLog:
    """Writes up to ``MOST_LINES`` lines in each interval of ``SECONDS``, and counts further refusals.

    Each line begins with ``who``. The limit prevents strangers from filling the log with many connections. Use a log in
    one thread.
    """

    def __init__(
        self, who: str, say: Callable[[str], object] = say, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._who, self._say, self._now = who, say, now
        self._began, self._lines, self._more = now(), 0, 0
        self.count = 0
        """The number of refusals."""

    def add(self, why: str) -> None:
        """Report a refusal."""
        self.tell()
        self.count += 1
        if self._lines < MOST_LINES:
            self._lines += 1
            self._say(f"{self._who}: {why}")
        else:
            self._more += 1

    def tell(self) -> None:
        """At the end of an interval, report how many refusals in the interval got no line."""
        if self._now() - self._began < SECONDS:
            return
        if self._more:
            self._say(f"{self._who}: {self._more:,} more were refused ({self.count:,} in all)")
        self._began, self._lines, self._more = self._now(), 0, 0
