"""The team of threads: every thread runs every operation of every step, at any timing of the steps."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.errors import KernelError
from pellucid.kernels.core.loop import MAX_THREADS
from pellucid.kernels.core.record import RECORD_WORDS
from pellucid.runtime.executor import Executor, Program, table
from pellucid.runtime.processors import processors

KERNEL = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
NO_STEP = np.zeros(16, np.int64)


def program(*kernels: Callable[[int, int], int], barrier: bool = True) -> Program:
    """A program of Python functions of (thread, threads) as kernels; their return values are the status."""
    native: list[Any] = [KERNEL(lambda a, b, record, step, *who, f=f: f(*who)) for f in kernels]
    rows = [[ctypes.cast(f, ctypes.c_void_p).value, int(barrier)] for f in native]
    return Program(table(rows), native)  # type: ignore[arg-type]


@contextmanager
def team(threads: int) -> Iterator[Executor]:
    executor = Executor(threads)
    try:
        yield executor
    finally:
        executor.close()


def parked(executor: Executor) -> bool:
    """Wait until no worker has run for a while: those of the executor, and those of an earlier executor that still end
    or of a model that other tests share. Returns False after a timeout, a long one: on a busy machine a worker that
    still looks for work is put aside again and again, and each time counts."""
    end, seen = time.monotonic() + 60, dict[int, int]()
    while time.monotonic() < end:
        names = {one.native_id: one.name for one in threading.enumerate()}
        workers = [number for number, name in names.items() if number and re.fullmatch(r"pellucid-\d+", name)]
        before, seen = seen, {number: switches(number) for number in workers}
        if before == seen and len(workers) >= executor.threads - 1:
            return True
        time.sleep(0.05)
    return False


def switches(thread: int) -> int:
    """The number of times that the system has let a thread run."""
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[2])
    except OSError:  # not Linux
        return 0


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_thread_runs_every_operation_of_many_quick_steps(threads: int) -> None:
    calls: list[tuple[int, int]] = []

    def note(operation: int) -> Callable[[int, int], int]:
        def kernel(thread: int, of: int) -> int:
            assert of == threads
            calls.append((operation, thread))
            return 0

        return kernel

    steps, program_ = 100, program(*[note(i) for i in range(3)])
    with team(threads) as executor:
        for _ in range(steps):
            executor.run(program_, NO_STEP)
    for step in range(steps):
        for operation in range(3):
            at = (step * 3 + operation) * threads
            assert sorted(calls[at : at + threads]) == [(operation, t) for t in range(threads)]


def test_threads_run_their_own_programs_and_steps_alone() -> None:
    seen: list[tuple[int, int, int]] = []

    def kernel_of(operation: int) -> Any:
        def kernel(a: int, b: int, record: int, step: int, thread: int, of: int) -> int:
            number = ctypes.c_int64.from_address(step).value
            own = ctypes.c_int64.from_address(record + 16).value
            assert (thread, of) == (0, 1)
            seen.append((operation, own, number))
            return 0

        return KERNEL(kernel)

    native = [kernel_of(operation) for operation in range(3)]
    rows = [ctypes.cast(one, ctypes.c_void_p).value for one in native]
    records = np.stack([table([[address, 1, thread] for address in rows]) for thread in range(4)])  # type: ignore[list-item]
    steps = 10 * np.arange(4)[:, None] + np.zeros((4, 16), np.int64)
    with team(4) as executor:
        for count in (4, 2, 1, 3):
            seen.clear()
            executor.run_apart(records[:count], steps[:count])
            assert sorted(seen) == [(op, thread, 10 * thread) for op in range(3) for thread in range(count)]
        executor.run(program(lambda thread, of: int(of != 4)), NO_STEP)  # all threads, together again


def test_an_error_of_a_thread_alone() -> None:
    native = [KERNEL(lambda a, b, record, step, *who: 7)]
    records = np.stack([table([[ctypes.cast(native[0], ctypes.c_void_p).value, 1]])] * 2)  # type: ignore[list-item]
    with team(2) as executor:
        with pytest.raises(KernelError, match="status 7"):
            executor.run_apart(records, np.zeros((2, 16), np.int64))
        executor.run(program(lambda thread, of: int(of != 2)), NO_STEP)


def test_steps_after_the_workers_have_been_parked() -> None:
    seen: list[int] = []
    program_ = program(lambda thread, of: seen.append(thread) or 0)  # type: ignore[func-returns-value]
    with team(3) as executor:
        for _ in range(3):
            assert parked(executor)
            executor.run(program_, NO_STEP)
            executor.run(program_, NO_STEP)
    assert sorted(seen) == [0] * 6 + [1] * 6 + [2] * 6


def test_steps_that_come_just_as_the_workers_are_about_to_park() -> None:
    count = [0, 0, 0]

    def kernel(thread: int, of: int) -> int:
        count[thread] += 1
        return 0

    program_ = program(kernel)
    with team(3) as executor:
        for i in range(200):
            executor.run(program_, NO_STEP)
            time.sleep(i % 20 * 0.0003)
    assert count == [200] * 3


def test_small_steps_run_on_as_many_threads_as_the_pace_says_and_others_on_all() -> None:
    calls: list[tuple[int, int]] = []
    program_ = program(lambda thread, of: calls.append((thread, of)) or 0)  # type: ignore[func-returns-value]
    random = np.random.default_rng(5)
    with team(4) as executor:
        for _ in range(300):
            tuner = executor.tuner(len(program_.records), 1)
            tuner.threads = int(random.integers(1, 5))
            small = bool(random.integers(2))
            of = tuner.threads if small else 4
            calls.clear()
            executor.run(program_, NO_STEP, small=small)
            assert sorted(calls) == [(thread, of) for thread in range(of)]
            if random.integers(20) == 0:
                assert parked(executor)


def test_all_parts_of_a_step_run_on_as_many_threads_as_the_first() -> None:
    calls: list[int] = []
    program_ = program(lambda thread, of: calls.append(of) or 0)  # type: ignore[func-returns-value]
    with team(4) as executor:
        for threads in (3, 1, 4, 2):
            tuner = executor.tuner(3 * len(program_.records), 1)
            tuner.threads = threads
            step = executor.step_in_parts(3 * len(program_.records), NO_STEP, small=1)
            for part in range(3):
                tuner.threads = 1 + (threads + part) % 4
                executor.run(program_, NO_STEP)  # a step of another model with the same threads
                calls.clear()
                step.run(program_, last=part == 2)
                assert calls == [threads] * threads


@pytest.mark.parametrize("threads", [0, MAX_THREADS + 1])
def test_a_team_has_a_number_of_threads_that_its_memory_has_room_for(threads: int) -> None:
    with pytest.raises(ValueError, match=f"{threads} threads: from 1 to {MAX_THREADS} are possible"):
        Executor(threads)


def test_two_teams_at_once() -> None:
    counts = [[0, 0], [0, 0]]

    def drive(which: int) -> None:
        def kernel(thread: int, of: int) -> int:
            counts[which][thread] += 1
            return 0

        program_ = program(kernel, kernel)
        with team(2) as executor:
            for _ in range(100):
                executor.run(program_, NO_STEP)

    drivers = [threading.Thread(target=drive, args=(which,)) for which in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert counts == [[200, 200], [200, 200]]


@pytest.mark.parametrize("who", [0, 1])
def test_a_status_is_an_error_once_and_the_team_works_on(who: int) -> None:
    program_ = program(lambda thread, of: 7 * (thread == who))
    good = program(lambda thread, of: 0)
    with team(2) as executor:
        for _ in range(2):
            with pytest.raises(KernelError, match="a kernel reported status 7"):
                executor.run(program_, NO_STEP)
            executor.run(good, NO_STEP)


def test_a_program_may_be_empty() -> None:
    with team(2) as executor:
        for _ in range(50):
            executor.run(program(), NO_STEP)


def workers(since: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in since]


@pytest.mark.parametrize("sleeping", [True, False])
def test_threads_end_when_the_executor_is_forgotten(sleeping: bool) -> None:
    before = set(threading.enumerate())
    executor = Executor(3)
    mine = workers(before)
    assert [thread.name for thread in mine] == ["pellucid-1", "pellucid-2"]
    executor.run(program(lambda thread, of: 0), NO_STEP)
    if sleeping:
        assert parked(executor)
    del executor
    gc.collect()
    for thread in mine:
        thread.join(5)
    assert not workers(before)


def test_closing_ends_the_threads_and_may_be_done_twice() -> None:
    before = set(threading.enumerate())
    executor = Executor(2)
    executor.close()
    executor.close()
    for thread in workers(before):
        thread.join(5)
    assert not workers(before)


def test_one_thread_needs_no_workers() -> None:
    before = set(threading.enumerate())
    with team(1) as executor:
        executor.run(program(lambda thread, of: 0), NO_STEP)
        assert not workers(before)


def test_a_table_is_records_of_one_length() -> None:
    rows = table([[1, 2, 3], [4]])
    assert rows.shape == (2, RECORD_WORDS)
    assert rows[:, :3].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert not rows[:, 3:].any()


def test_default_threads_are_at_least_one_and_no_more_than_there_are_cpus() -> None:
    assert 1 <= processors().threads <= (os.cpu_count() or 1)
