"""The loop that every thread runs over a program, and the barrier between operations.

A program is a table of records (``record.py``): word 0 of each is the kernel's address, word 1 says whether
all threads must meet after it. Python is not in the loop; one call runs one step.

The control block is a row of 64-byte lines, so that no two threads write to the same line:

    line 0   epoch: the number of the step that may run       line 3   address of the program
    line 1   set to 1 to stop the workers                      line 4   number of records
    line 2   a kernel's non-zero status, 0 if none             line 5   address of the step's record
    line 8+t barriers that thread t has passed

Waiting is in three stages, so that nobody starves when there are more busy threads than cores: spin for some
50 µs, then offer the core to others between looks, and (workers between steps) return to Python to be parked.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.record import RECORD_WORDS, WORD

LINE = 64
EPOCH, STOP, STATUS, PROGRAM, RECORDS, STEP = (LINE * i for i in range(6))
PASSED = LINE * 8
MAX_THREADS = 256
CONTROL_BYTES = PASSED + LINE * MAX_THREADS

EAGER = 50  # looks at a barrier without a pause: a pause takes as long as the other thread is away
SPINS = 1000  # looks before the core is offered to others
YIELDS = 4000  # offers before a worker that waits for a step is parked


def _loop(simd: Any) -> Any:
    load, store, relax = simd.atomic_load, simd.atomic_store, simd.relax
    yield_core, call, jit = simd.yield_core, simd.call_kernel, simd.jit
    stride = RECORD_WORDS * WORD

    @jit
    def barrier(control, thread, threads):
        mine = load(control + PASSED + LINE * thread) + 1
        store(control + PASSED + LINE * thread, mine)
        for other in range(threads):
            looks = 0
            while load(control + PASSED + LINE * other) < mine:
                looks += 1
                if looks > SPINS:
                    yield_core()
                elif looks > EAGER:
                    relax()

    @jit
    def run(control, thread, threads):
        record = load(control + PROGRAM)
        step = load(control + STEP)
        for _ in range(load(control + RECORDS)):
            status = call(load(record), record, step, thread, threads)
            if status != 0:
                store(control + STATUS, status)
            if load(record + WORD) != 0 and threads > 1:
                barrier(control, thread, threads)
            record += stride
        if threads > 1:
            barrier(control, thread, threads)

    return run


@kernel("loop.lead")
def lead(simd: Any) -> Any:
    """(control, threads, unused, unused): run one step as thread 0. The workers have been told by the epoch."""
    run = _loop(simd)

    @simd.jit
    def body(control, threads, unused, unused_too):
        run(control, 0, threads)

    return body


@kernel("loop.work")
def work(simd: Any) -> Any:
    """(control, thread, threads, seen): run the steps after ``seen``, until stopped or idle for some milliseconds.

    The last step that was run is left at line ``seen`` of the thread: PASSED line, second word.
    """
    run = _loop(simd)
    load, store, relax, yield_core = simd.atomic_load, simd.atomic_store, simd.relax, simd.yield_core

    @simd.jit
    def body(control, thread, threads, seen):
        looks = 0
        while load(control + STOP) == 0:
            if load(control + EPOCH) > seen:
                seen += 1
                run(control, thread, threads)
                store(control + PASSED + LINE * thread + WORD, seen)
                looks = 0
                continue
            looks += 1
            if looks < SPINS:
                relax()
            elif looks < SPINS + YIELDS:
                yield_core()
            else:
                break

    return body
