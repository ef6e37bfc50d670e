"""How many threads make a token while other processes want the same cores.

Threads that meet every few microseconds work only while each of them has a core. Beside busy processes they then lose
far more than the cores that are taken, and a lone token waits for memory, of which one thread alone gets the better
part. The answer's bits do not depend on the number of threads, so it may change from one step to the next.
"""

from __future__ import annotations

WAITS = 3  # times that threads gave up their cores in a step: fewer are chance
FIRST, LONGEST = 8, 256  # steps between attempts with one thread more


class Pace:
    """``threads`` is how many the next small step had better run on, ``most`` at most.

    A step whose threads had to wait for cores halves the team. After some quiet steps it grows by one; where that
    brings the waiting back, the next attempt is made after twice as many steps.
    """

    def __init__(self, most: int) -> None:
        self.threads, self._most = most, most
        self._quiet, self._patience = 0, FIRST
        self._trying = False

    def tell(self, waits: int) -> None:
        """How often threads gave up their cores in the step that was run."""
        if waits < WAITS:
            self._quiet += 1
            if self._trying and self._quiet >= FIRST:
                self._trying, self._patience = False, FIRST
            if self.threads < self._most and not self._trying and self._quiet >= self._patience:
                self.threads, self._trying, self._quiet = self.threads + 1, True, 0
            return
        if self._trying:
            self.threads, self._patience = self.threads - 1, min(2 * self._patience, LONGEST)
        else:
            self.threads = max(1, self.threads // 2)
        self._trying, self._quiet = False, 0
