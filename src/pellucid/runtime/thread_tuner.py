"""The number of threads for small steps, found by measuring the duration of steps.

Fewer threads are faster in two cases:

- Other processes use the same cores. The threads of a step wait for each other every few microseconds, so they make
  progress only while each thread has a core. The step may lose far more time than the other processes use. A step with
  one token is limited by memory bandwidth, and a single thread gets most of the bandwidth, so fewer threads cost little
  speed.
- The model is small. Each additional thread leaves less work per thread, but makes the barriers slower. So large teams
  also try half of their threads.

The number of threads may change from one step to the next, because it does not change any bit of the results.
"""

from __future__ import annotations

# If threads yielded or slept at least this many times in a step, they waited for cores.
MIN_WAITS = 3
MIN_STEPS = 2  # steps with another number of threads before the tuner can judge this number
MIN_INTERVAL, MAX_INTERVAL = 8, 256  # steps between attempts; an attempt has MIN_INTERVAL steps
ABORT_RATIO = 1.1  # an attempt ends early if its steps take this many times as long
LARGE_TEAM = 8  # larger teams also try fewer threads when no thread had to wait for a core
FORGET_STEPS = 1024  # steps until the times of other numbers of threads are discarded


class ThreadTuner:
    """Chooses ``threads``, the number of threads for the next small step of one kind, at most ``max_threads``.

    If threads had to wait for cores in two consecutive steps, the number of threads is halved, unless half the number
    is known to be slower. A single step with waits is not enough, because its threads may have waited for memory pages,
    or for other threads to wake up. If the next steps are slower, the previous number is restored.

    After some steps the tuner attempts another number: one more thread. Large teams try in turns half the team, twice
    the team and one more thread. If the attempt is slower, the number of steps before the next attempt doubles. The
    first step with another number is not counted, because its threads may have to wake up.
    """

    def __init__(self, max_threads: int) -> None:
        self.threads, self._max_threads = max_threads, max_threads
        self._seconds: dict[int, float] = {}  # recent mean duration of a step, by number of threads
        self._steps = self._steps_since_switch = 0  # steps in total, and with this number of threads
        self._attempt_interval = MIN_INTERVAL
        self._attempt_from = 0  # the number of threads before the current attempt; 0: no attempt
        self._attempts = 0  # number of failed attempts; it selects the next number to try
        self._halved_from = 0  # the number of threads before the current halving; 0: no halving
        self._has_waited = False

    def record(self, waits: int, seconds: float) -> None:
        """Record the last step: how many times its threads yielded or slept, and its duration in seconds."""
        self._steps, self._steps_since_switch = self._steps + 1, self._steps_since_switch + 1
        waits_now, fewer = waits >= MIN_WAITS, self.threads // 2
        waited, self._has_waited = waits_now and self._has_waited, waits_now
        if self._steps_since_switch == 1:
            return
        mean = self._seconds.get(self.threads, seconds)
        self._seconds[self.threads] = mean = mean + (seconds - mean) / MIN_INTERVAL
        if self._steps >= FORGET_STEPS and not self._attempt_from and not self._halved_from:
            self._seconds, self._steps = {self.threads: mean}, 0
        if self._halved_from and self._steps_since_switch >= MIN_STEPS:
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
        """The number of threads for the next attempt; 0: no other number is possible."""
        team, more = self.threads, min(self.threads + 1, self._max_threads)
        numbers = (
            (team // 2, min(2 * team, self._max_threads), more) if self._max_threads > LARGE_TEAM else (more,)
        )
        possible = [n for n in dict.fromkeys(numbers) if n > team or n < team > LARGE_TEAM]
        return possible[self._attempts % len(possible)] if possible else 0

    def _judge_attempt(self, waited: bool, mean: float) -> None:
        """End an attempt if it failed or succeeded; otherwise let it continue."""
        before, steps = self._seconds.get(self._attempt_from, mean), self._steps_since_switch - 1
        if mean > before and (
            waited or steps >= MIN_INTERVAL or (steps >= MIN_STEPS and mean > ABORT_RATIO * before)
        ):
            self.threads, self._attempt_from, self._steps_since_switch = self._attempt_from, 0, 0
            self._attempt_interval = min(2 * self._attempt_interval, MAX_INTERVAL)
            self._attempts += 1
        elif steps >= MIN_INTERVAL:
            self._attempt_from, self._attempt_interval = 0, MIN_INTERVAL

    def _switch_to(self, threads: int) -> None:
        self.threads, self._steps_since_switch = threads, 0
        self._seconds.pop(threads, None)
