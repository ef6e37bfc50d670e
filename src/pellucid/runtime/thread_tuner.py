"""How many threads run a small step: fewer while other processes use the same cores, and where fewer are faster.

Threads that meet every few microseconds make progress only while each of them has a core. Beside busy processes they
may lose far more than the share of the cores that is taken. A step with one token is limited by memory, and one thread
alone gets most of the memory bandwidth. So when threads have to wait, the faster number of threads is found by
measuring. A small model's step also has a best number of cores: with each one more, a thread has less to compute, and
more threads to meet. So large teams try whether half of them is faster. The number may change from one step to the
next, because the bits of the results do not depend on it.
"""

from __future__ import annotations

WAITS = 3  # how often threads must give up their cores in a step to count as waiting: fewer are chance
PROOF = 2  # steps with another number of threads that show whether it is much better or worse
FIRST, LONGEST = 8, 256  # steps between attempts with another number of threads; an attempt has FIRST steps
MUCH = 1.1  # an attempt that takes so many times as long ends at once
MANY = 8  # teams of more threads try fewer, although no thread had to wait for a core
FORGOTTEN = 1024  # steps after which the times of other numbers of threads are discarded


class ThreadTuner:
    """Chooses ``threads``, the number of threads for the next small step of one kind, at most ``most``.

    Two steps in a row whose threads had to wait for cores halve the team, unless that is known to be slower; a single
    one may have waited for pages of memory, or for threads to wake up. If the next steps are slower, all are back.

    After some steps another number is tried: one more thread; for large teams half of them, twice as many and one more,
    in turns. If that is slower, twice as many steps pass before the next attempt. The first step with another number is
    not counted, because its threads may have to wake up.
    """

    def __init__(self, most: int) -> None:
        self.threads, self._most = most, most
        self._seconds: dict[int, float] = {}  # recent mean duration of a step, by number of threads
        self._steps = self._steps_since_switch = 0  # in total, and with this number of threads
        self._attempt_interval = FIRST
        self._attempt_from = 0  # the number of threads before the current attempt; 0: no attempt
        self._attempts = 0  # how many attempts have failed, which says what is tried next
        self._halved_from = 0  # the number of threads before the team was halved; 0: that has proved better
        self._has_waited = False

    def tell(self, waits: int, seconds: float) -> None:
        """Record how often threads gave up their cores in the last step, and how long the step took."""
        self._steps, self._steps_since_switch = self._steps + 1, self._steps_since_switch + 1
        waits_now, fewer = waits >= WAITS, self.threads // 2
        waited, self._has_waited = waits_now and self._has_waited, waits_now
        if self._steps_since_switch == 1:
            return
        mean = self._seconds.get(self.threads, seconds)
        self._seconds[self.threads] = mean = mean + (seconds - mean) / FIRST
        if self._steps >= FORGOTTEN and not self._attempt_from and not self._halved_from:
            self._seconds, self._steps = {self.threads: mean}, 0
        if self._halved_from and self._steps_since_switch >= PROOF:
            before, self._halved_from = self._halved_from, 0
            if mean > self._seconds.get(before, mean):
                self._switch_to(before)
                return
        if self._attempt_from:
            self._judge_attempt(waits_now, mean)
        elif waited and fewer and self._seconds.get(fewer, 0.0) < mean:
            self._halved_from = self.threads
            self._switch_to(fewer)
        elif self._steps_since_switch > self._attempt_interval and (other := self._other_number()):
            self._attempt_from = self.threads
            self._switch_to(other)

    def _other_number(self) -> int:
        """The number of threads for the next attempt; 0: there is no other one."""
        team, more = self.threads, min(self.threads + 1, self._most)
        numbers = (team // 2, min(2 * team, self._most), more) if self._most > MANY else (more,)
        possible = [n for n in dict.fromkeys(numbers) if n > team or n < team > MANY]
        return possible[self._attempts % len(possible)] if possible else 0

    def _judge_attempt(self, waited: bool, mean: float) -> None:
        """Decide whether an attempt succeeds."""
        before, steps = self._seconds.get(self._attempt_from, mean), self._steps_since_switch - 1
        if mean > before and (waited or steps >= FIRST or (steps >= PROOF and mean > MUCH * before)):
            self.threads, self._attempt_from, self._steps_since_switch = self._attempt_from, 0, 0
            self._attempt_interval = min(2 * self._attempt_interval, LONGEST)
            self._attempts += 1
        elif steps >= FIRST:
            self._attempt_from, self._attempt_interval = 0, FIRST

    def _switch_to(self, threads: int) -> None:
        self.threads, self._steps_since_switch = threads, 0
        self._seconds.pop(threads, None)
