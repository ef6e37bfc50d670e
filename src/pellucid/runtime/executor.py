"""Runs programs on a team of threads, whose number for small steps is found by measuring; single kernels from
Python."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, KernelError
from pellucid.kernels.core import loop
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.core.record import RECORD_WORDS, Record, float_word
from pellucid.runtime.memory import Placement, address, aligned
from pellucid.runtime.processors import processors

# The number of threads for small steps, found by measuring the duration of steps.
#
# Fewer threads are faster in two cases:
#
# - Other processes use the same cores. The threads of a step wait for each other every few microseconds, so they make
#   progress only while each thread has a core. The step may lose far more time than the other processes use. A step
#   with one token is limited by memory bandwidth, and a single thread gets most of the bandwidth, so fewer threads cost
#   little speed.
# - The model is small. Each additional thread leaves less work per thread, but makes the barriers slower. So large
#   teams also try half of their threads.
#
# The number of threads may change from one step to the next, because it does not change any bit of the results.

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
        numbers = (team // 2, min(2 * team, self._max_threads), more) if self._max_threads > LARGE_TEAM else (more,)
        possible = [n for n in dict.fromkeys(numbers) if n > team or n < team > LARGE_TEAM]
        return possible[self._attempts % len(possible)] if possible else 0

    def _judge_attempt(self, waited: bool, mean: float) -> None:
        """End an attempt if it failed or succeeded; otherwise let it continue."""
        before, steps = self._seconds.get(self._attempt_from, mean), self._steps_since_switch - 1
        if mean > before and (waited or steps >= MIN_INTERVAL or (steps >= MIN_STEPS and mean > ABORT_RATIO * before)):
            self.threads, self._attempt_from, self._steps_since_switch = self._attempt_from, 0, 0
            self._attempt_interval = min(2 * self._attempt_interval, MAX_INTERVAL)
            self._attempts += 1
        elif steps >= MIN_INTERVAL:
            self._attempt_from, self._attempt_interval = 0, MIN_INTERVAL

    def _switch_to(self, threads: int) -> None:
        self.threads, self._steps_since_switch = threads, 0
        self._seconds.pop(threads, None)


# A compiled kernel that Python calls directly, outside a plan. Each call has a new record of arguments.


class Call:
    """A compiled kernel as a Python function. The arguments are the fields of the kernel's record.

    The fields in ``known`` have the same value in every call. The record holds only the addresses of arrays, so the
    object keeps a reference to each array in ``known``.
    """

    def __init__(self, key: KernelKey, record: type[Record], **known: Any) -> None:
        self._run = shared().function(key)
        self._arrays = [value for value in known.values() if isinstance(value, np.ndarray)]
        values = {name: address(v) if isinstance(v, np.ndarray) else v for name, v in known.items()}
        fields = dict.fromkeys(record.fields, 0) | values
        self._words = np.array(record.pack(fields), np.int64)
        self._word_index = {field: offset // 8 for field, offset in record.at._asdict().items()}

    def __call__(self, **fields: int | float) -> None:
        words = self._words.copy()
        view: Any = words.data
        for name, value in fields.items():
            view[self._word_index[name]] = float_word(value) if type(value) is float else value
        self._run(address(words), 0, 0, 0)


# Runs programs on a team of threads. The threads start once, and all execute the same compiled loop.
#
# A program is a table of records (``kernels/core/record.py``). ``run`` announces a step by a new epoch number. Every
# thread then executes the records of the table in order, and all threads wait for each other at the end. Between steps
# a worker thread spins for half a millisecond (50 µs if there are more threads than cores). Then the worker waits on a
# condition until a step needs it. Small steps may not need all workers: the thread tuner chooses the number of threads.

FORKED = "this model was loaded before a fork, and its threads do not exist in the child: load it in the child"
LOOP_KERNELS = (KernelKey("loop.lead"), KernelKey("loop.work"))


class Program(Struct, frozen=True):
    """A table of records, ready to run. ``keep`` references the arrays whose addresses are in the records."""

    records: NDArray[np.int64]
    keep: Sequence[Any]


class Executor:
    """A team of ``threads`` threads, including the calling thread. It runs one step at a time; other callers wait.

    ``placement`` binds the other threads to cores. By default they are not bound.

    Raises:
        KernelError: from ``run``, if a kernel reports failure.
        ValueError: ``threads`` is above ``loop.MAX_THREADS``.
        InvalidRequest: from ``run``, in a process forked after the team was started.
    """

    def __init__(self, threads: int, placement: Placement | None = None) -> None:
        if not 1 <= threads <= loop.MAX_THREADS:
            raise ValueError(f"{threads} threads: from 1 to {loop.MAX_THREADS} are possible")
        self.threads, self._process = threads, os.getpid()
        self.placement = placement or Placement(threads, "none")
        self._tuners: defaultdict[tuple[int, int], ThreadTuner] = defaultdict(partial(ThreadTuner, threads))
        self._steps, self._lock = 0, threading.Lock()
        self._control: NDArray[np.int64] = aligned(loop.CONTROL_BYTES).view(np.int64)
        self._control[:] = 0
        self._control[loop.PATIENCE // 8] = (
            loop.POLLS_BEFORE_SLEEP if threads <= processors().usable else loop.POLLS_IF_CROWDED
        )
        self._lead, self._address = shared().function(LOOP_KERNELS[0]), address(self._control)
        self._team = _Team(self._control, self.placement)
        if sys.platform == "win32":
            from pellucid.util.windows import prevent_throttling

            prevent_throttling()
        for thread in range(1, threads):
            worker = threading.Thread(target=_work, args=(self._team, thread), name=f"pellucid-{thread}", daemon=True)
            worker.start()
        self._finalizer = weakref.finalize(self, self._team.stop)

    def run(self, program: Program, step: NDArray[np.int64], *, small: int = 0) -> None:
        """Run one step: every record of the program. Releases the GIL. ``small``: as in ``step_in_parts``."""
        self.step_in_parts(len(program.records), step, small=small).run(program, last=True)

    def step_in_parts(self, records: int, step: NDArray[np.int64], *, small: int = 0) -> StepInParts:
        """Begin a step whose ``records`` records run as one program or as several, one after the other.

        ``small`` is the number of tokens of a small step, and 0 for other steps. All threads run the other steps. The
        threads of a small step wait for each other every few microseconds, so more threads are not always faster. The
        thread tuner chooses the number of threads for the size of the step and the number of its records.
        """
        return StepInParts(self, self.tuner(records, small) if small else None, step)

    def run_apart(self, records: NDArray[np.int64], steps: NDArray[np.int64]) -> None:
        """Run a program and a step on each of some threads, which do not wait for each other. Releases the GIL.

        Thread t runs the records ``records[t]``, of shape (operations, RECORD_WORDS), with the step's record
        ``steps[t]``, alone. Both arrays are contiguous and have at most ``threads`` rows.
        """
        if self.forked:
            raise InvalidRequest(FORKED)
        with self._lock:
            self._control[loop.APART // 8] = steps.strides[0]
            try:
                self._steps += 1
                epoch = self._steps << loop.ACTIVE_BITS | len(records)
                self._team.announce(address(records), records.shape[1], address(steps), epoch)
                self._lead(self._address, len(records), self._steps, 0)
            finally:
                self._control[loop.APART // 8] = 0
            self._raise_of_status()

    def tuner(self, records: int, small: int) -> ThreadTuner:
        """The thread tuner for steps of ``small`` tokens and ``records`` records."""
        return self._tuners[small, records]

    def run_on(self, threads: int, program: Program, step: NDArray[np.int64]) -> tuple[int, float]:
        """Run every record of the program on the first ``threads`` threads. Releases the GIL.

        Returns how many times the threads yielded or slept, and the seconds.
        """
        if self.forked:
            raise InvalidRequest(FORKED)
        with self._lock:
            self._steps, start = self._steps + 1, time.perf_counter()
            epoch = self._steps << loop.ACTIVE_BITS | threads
            self._team.announce(address(program.records), len(program.records), address(step), epoch)
            self._lead(self._address, threads, self._steps, 0)
            seconds = time.perf_counter() - start
            self._raise_of_status()
            return int(self._control[loop.WAITS // 8]), seconds

    def _raise_of_status(self) -> None:
        if status := int(self._control[loop.STATUS // 8]):
            self._control[loop.STATUS // 8] = 0
            raise KernelError(f"a kernel reported status {status}")

    @property
    def forked(self) -> bool:
        """True if this process was forked from the process that started the threads."""
        return os.getpid() != self._process

    @property
    def closed(self) -> bool:
        """True if the threads have been stopped. ``run`` would then wait for them forever."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Stop the threads."""
        self._finalizer()


class StepInParts:
    """One step, whose programs all run on the same number of threads.

    In a step with one row, each thread reads the copies that it has written (``plan/passes.py``), also in the programs
    before.
    """

    def __init__(self, executor: Executor, tuner: ThreadTuner | None, step: NDArray[np.int64]) -> None:
        self._executor, self._tuner, self._step = executor, tuner, step
        self._threads = tuner.threads if tuner else executor.threads
        self._waits, self._seconds = 0, 0.0

    def run(self, program: Program, *, last: bool = False) -> None:
        """Run the next program of the step. ``last``: no other program of the step follows."""
        waits, seconds = self._executor.run_on(self._threads, program, self._step)
        self._waits, self._seconds = self._waits + waits, self._seconds + seconds
        if last and self._tuner:
            self._tuner.record(self._waits, self._seconds)


class _Team:
    """The state that workers share with the executor.

    It has no reference to the executor, so that running workers do not keep an unused executor alive.
    """

    def __init__(self, control: NDArray[np.int64], placement: Placement) -> None:
        self.control, self.placement = control, placement
        self.condition, self.order = threading.Condition(), threading.Lock()
        self.parked: set[int] = set()

    def announce(self, program: int, records: int, step: int, epoch: int) -> None:
        """Announce the next step."""
        # No worker may see the new epoch before the other fields. A lock keeps stores inside, and Arm processors may
        # reorder them there, so the epoch needs a lock of its own.
        with self.order:
            self.control[loop.PROGRAM // 8] = program
            self.control[loop.RECORDS // 8] = records
            self.control[loop.STEP // 8] = step
        with self.order:
            self.control[loop.EPOCH // 8] = epoch
        # A worker enters ``parked``, then reads the epoch once more. So it sees this epoch, or is notified here.
        if self.parked and any(_takes_part(thread, epoch) for thread in tuple(self.parked)):
            with self.condition:
                self.condition.notify_all()

    def stop(self) -> None:
        with self.condition:
            self.control[loop.STOP // 8] = 1
            self.condition.notify_all()


def _work(team: _Team, thread: int) -> None:
    """Body of a worker thread: run steps in compiled code until no step follows soon, then park until the next step."""
    team.placement.bind(thread)
    native = shared().function(LOOP_KERNELS[1])
    control, seen_at = team.control, (loop.PASSED + loop.LINE * thread + 8) // 8
    while True:
        native(control.ctypes.data, thread, int(control[seen_at]), 0)
        with team.condition:
            team.parked.add(thread)
            while not control[loop.STOP // 8] and not _has_new_step(control, thread, seen_at):
                team.condition.wait()
            team.parked.discard(thread)
            if control[loop.STOP // 8]:
                return


def _takes_part(thread: int, epoch: int) -> bool:
    """True if a thread runs the step of this epoch."""
    return thread < epoch & ((1 << loop.ACTIVE_BITS) - 1)


def _has_new_step(control: NDArray[np.int64], thread: int, seen_at: int) -> bool:
    """True if a thread takes part in the current step, and has not run the step yet."""
    epoch = int(control[loop.EPOCH // 8])
    return epoch != control[seen_at] and _takes_part(thread, epoch)


def table(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Pack records into one array (records, RECORD_WORDS) int64. A record is a list of words, padded with zeros."""
    out = np.zeros((len(rows), RECORD_WORDS), np.int64)
    for record, words in zip(out, rows):
        record[: len(words)] = words
    return out
