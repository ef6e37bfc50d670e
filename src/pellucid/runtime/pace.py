"""How many threads make a token while other processes want the same cores.

Threads that meet every few microseconds work only while each of them has a core. Sidecar busy processes they may lose
far more than the cores that are taken, and a lone token waits for memory, of which one thread alone gets the better
part. Which is faster is measured, once there is a reason to. The answer's bits do not depend on the number of threads,
so it may change from one step to the next.
"""

from __future__ import annotations

WAITS = 3  # times that threads gave up their cores in a step: fewer are chance
FIRST, LONGEST = 8, 256  # steps between attempts with one thread more; an attempt has FIRST steps
FORGOTTEN = 1024  # steps after which what other sizes took is no longer believed


class Pace:
    """``threads`` is how many the next small step had better run on, ``most`` at most.

    A step whose threads had to wait for cores is a reason to halve the team, unless that is known to be slower. After
    some steps one more thread is tried; if it does not pay, the next attempt comes after twice as many.
    """

    def __init__(self, most: int) -> None:
        self.threads, self._most = most, most
        self._seconds: dict[int, float] = {}  # what a step takes, of late, by the number of threads
        self._steps = self._since = 0  # in all, and with this number of threads
        self._patience = FIRST
        self._before = 0  # what an attempt with one more goes back to; 0: this is none

    def tell(self, waits: int, seconds: float) -> None:
        """How often threads gave up their cores in the step that was run, and how long it took."""
        self._steps, self._since = self._steps + 1, self._since + 1
        mean = self._seconds.get(self.threads, seconds)
        self._seconds[self.threads] = mean = mean + (seconds - mean) / FIRST
        if self._steps % FORGOTTEN == 0:
            self._seconds = {self.threads: mean}
        waited, fewer = waits >= WAITS, self.threads // 2
        if self._before:
            self._judge(waited, mean)
        elif waited and fewer and self._seconds.get(fewer, 0.0) < mean:
            self._go(fewer)
        elif self.threads < self._most and self._since >= self._patience:
            self._before = self.threads
            self._go(self.threads + 1)

    def _judge(self, waited: bool, mean: float) -> None:
        """Whether an attempt pays."""
        slower = mean > self._seconds.get(self._before, mean)
        if slower and (waited or self._since >= FIRST):
            self.threads, self._before, self._since = self._before, 0, 0
            self._patience = min(2 * self._patience, LONGEST)
        elif self._since >= FIRST:
            self._before, self._patience = 0, FIRST

    def _go(self, threads: int) -> None:
        self.threads, self._since = threads, 0
        self._seconds.pop(threads, None)
