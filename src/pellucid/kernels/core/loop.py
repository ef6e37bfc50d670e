"""The loop that every thread runs over a program, and the barrier between operations.

A program is a table of records (``record.py``). Word 0 of a record is the kernel's address. Word 1 defines the barrier
after the operation: 0 for no barrier, 1 for a barrier, and n > 1 for a barrier unless the step record's word at offset
n - 2 is 1. One call runs one step, without Python in the loop.

The control block consists of 64-byte lines, so that no two threads write to the same line:

    line 0   epoch: the step to run and its threads            line 3   address of the program
    line 1   set to 1 to stop the workers                      line 4   number of records
    line 2   a kernel's non-zero status, 0 if none             line 5   address of the step's record
    line 8+t the last meeting that thread t has reached        line 6   polls before a thread sleeps or is parked
    line 7   number of times that threads yielded or slept in the last step

If the second word of line 5 is not 0, each thread runs its own program and step alone, as thread 0 of 1, without
barriers: the programs follow each other in memory, and so do the steps, which have this number of bytes each.

The epoch is one word: the step's number in the upper bits, and the number of threads that run the step in the lower
bits. So one read returns both numbers. The other threads do not run the step.

A barrier consists of one or several *meetings*. A barrier of up to ``RADIX`` threads is one meeting: each thread waits
until all others have reached it. With more threads, one meeting would move threads² cache lines between the cores. A
barrier then has several meetings (a dissemination barrier, Hensgen, Finkel and Manber 1988, with a radix). In the first
meeting a thread waits for its ``RADIX`` - 1 predecessors. In the next meeting it waits for the threads that are
``RADIX``, 2 * ``RADIX``, ..., (``RADIX`` - 1) * ``RADIX`` places before it, and so on. Thread numbers wrap around. A
thread that has reached a meeting has completed the meeting before it. After the last meeting every thread therefore
knows that all others have arrived. For 64 threads, a barrier has two meetings, and each thread reads 14 lines instead
of 63. The meetings of a step are numbered from step * 2^20 on, so that all threads agree on the numbers even if some
threads did not run earlier steps.

At a meeting a thread spins, because the other threads usually arrive within a microsecond. If the awaited thread
started the step on the same core, the waiting thread yields the core immediately. After half a millisecond another
process probably has the awaited thread's core. The waiting thread then sleeps until the awaited thread wakes it. The
operating system prefers threads that have slept, so both threads run at the same time again and not in turns. Between
steps a worker spins for the same time, then returns to Python to be parked.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import RECORD_WORDS, WORD

LINE = 64
EPOCH, STOP, STATUS, PROGRAM, RECORDS, STEP, PATIENCE, WAITS = (LINE * i for i in range(8))
PASSED = LINE * 8
APART = STEP + WORD
CORE = 16  # in a thread's line: the core on which it started this step
SLEEPERS = 24  # in a thread's line: not 0 if other threads sleep until it reaches its next meeting
WAITED = 32  # in a thread's line: number of times that it yielded or slept in this step
ACTIVE_BITS = 16  # low bits of an epoch: the number of threads
MEETING_BITS = 20  # low bits of a meeting's number: its number within the step
MAX_THREADS = 256
RADIX = 8  # threads of a meeting; on most machines, the threads that share a cache
CONTROL_BYTES = PASSED + LINE * MAX_THREADS

# Polls at a barrier before a thread executes pause instructions. A pause takes as long as a typical wait.
POLLS_WITHOUT_PAUSE = 50
POLLS_BEFORE_SLEEP = 10_000  # polls before a thread sleeps: 500 µs
POLLS_IF_CROWDED = 1_000  # polls before a thread sleeps if there are more threads than cores: 50 µs
MAX_SLEEP = 1_000_000  # nanoseconds; then the thread polls again


def _loop(simd: Any) -> Any:
    load, store, relax = simd.atomic_load, simd.atomic_store, simd.relax
    sleep_while, wake, yield_core = simd.sleep_while, simd.wake, simd.yield_core
    current_core, call, jit = simd.current_core, simd.call_kernel, simd.jit
    stride = RECORD_WORDS * WORD

    @jit
    def wait_for(own, line, number, patience):
        """Return when the thread of ``line`` has reached meeting ``number``."""
        polls, passed = 0, load(line)
        while passed < number:
            polls += 1
            if polls > patience:
                store(own + WAITED, load(own + WAITED) + 1)
                store(line + SLEEPERS, 1)
                sleep_while(line, passed & 0xFFFFFFFF, MAX_SLEEP)
            elif polls > POLLS_WITHOUT_PAUSE:
                if load(line + CORE) == current_core():
                    store(own + WAITED, load(own + WAITED) + 1)
                    yield_core()
                else:
                    relax()
            passed = load(line)

    @jit
    def barrier(control, thread, threads, number):
        """Wait for all threads, at the meetings after ``number``. Returns the number of the last meeting."""
        own, patience = control + PASSED + LINE * thread, load(control + PATIENCE)
        distance = 1
        while distance < threads:
            number += 1
            store(own, number)
            if load(own + SLEEPERS) != 0:
                store(own + SLEEPERS, 0)
                wake(own)
            for i in range(1, RADIX):
                if i * distance >= threads:
                    break
                other = thread - i * distance
                if other < 0:
                    other += threads
                wait_for(own, control + PASSED + LINE * other, number, patience)
            distance *= RADIX
        return number

    @jit
    def run(control, thread, threads, step_number):
        number = step_number << MEETING_BITS
        store(control + PASSED + LINE * thread + CORE, current_core())
        store(control + PASSED + LINE * thread + WAITED, 0)
        record, records = load(control + PROGRAM), load(control + RECORDS)
        step, apart = load(control + STEP), load(control + APART)
        number_of_own, of = thread, threads
        if apart != 0:
            record, step = record + thread * records * stride, step + thread * apart
            number_of_own, of = 0, 1
        for _ in range(records):
            status = call(load(record), record, step, number_of_own, of)
            if status != 0:
                store(control + STATUS, status)
            follows = load(record + WORD)
            if apart == 0 and (follows == 1 or (follows > 1 and load(step + follows - 2) != 1)):
                number = barrier(control, thread, threads, number)
            record += stride
        barrier(control, thread, threads, number)

    return run


@kernel("loop.lead")
def lead(simd: Any) -> Any:
    """(control, threads, number, unused): run step ``number`` as thread 0, after the epoch has started the workers."""
    run, load, store = _loop(simd), simd.atomic_load, simd.atomic_store

    @simd.jit
    def body(control, threads, number, unused):
        run(control, 0, threads, number)
        waits = 0
        for thread in range(threads):
            waits += load(control + PASSED + LINE * thread + WAITED)
        store(control + WAITS, waits)

    return body


@kernel("loop.work")
def work(simd: Any) -> Any:
    """(control, thread, seen, unused): run the steps after the epoch ``seen`` as a worker.

    Returns when the workers are stopped, when a step does not use the thread, or when no step arrives while the thread
    spins. The last epoch seen is stored in the second word of the thread's line.
    """
    run = _loop(simd)
    load, store, relax = simd.atomic_load, simd.atomic_store, simd.relax

    @simd.jit
    def body(control, thread, seen, unused):
        polls, patience = 0, load(control + PATIENCE)
        while load(control + STOP) == 0:
            epoch = load(control + EPOCH)
            if epoch != seen:
                seen, threads = epoch, epoch & ((1 << ACTIVE_BITS) - 1)
                if thread < threads:
                    run(control, thread, threads, epoch >> ACTIVE_BITS)
                store(control + PASSED + LINE * thread + WORD, seen)
                if thread >= threads:
                    break
                polls = 0
                continue
            polls += 1
            if polls > patience:
                break
            relax()

    return body
