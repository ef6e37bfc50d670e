"""Runs programs on a team of threads. The threads start once, and all execute the same compiled loop.

A program is a table of records (``kernels/core/record.py``). ``run`` announces a step by a new epoch number. Every
thread then executes the records of the table in order, and all threads wait for each other at the end. Between steps a
worker thread spins for half a millisecond (50 µs if there are more threads than cores). Then the worker waits on a
condition until a step needs it. Small steps may not need all workers: the thread tuner chooses the number of threads
(``thread_tuner.py``).
"""

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
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.core.record import RECORD_WORDS
from pellucid.kernels.program import loop
from pellucid.runtime.memory import address, aligned
from pellucid.runtime.placement import Placement
from pellucid.runtime.processors import processors
from pellucid.runtime.thread_tuner import ThreadTuner

FORKED = (
    "this model was loaded before a fork, and its threads do not exist in the child: load it in the child"
)
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
            worker = threading.Thread(
                target=_work, args=(self._team, thread), name=f"pellucid-{thread}", daemon=True
            )
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
