"""The loop that every thread runs over a program, and the barrier between operations.

A program is a table of records (``record.py``): word 0 of each is the kernel's address, word 1 says whether
all threads must meet after it. Python is not in the loop; one call runs one step.

The control block is a row of 64-byte lines, so that no two threads write to the same line:

    line 0   epoch: the number of the step that may run       line 3   address of the program
    line 1   set to 1 to stop the workers                      line 4   number of records
    line 2   a kernel's non-zero status, 0 if none             line 5   address of the step's record
    line 8+t barriers that thread t has passed                 line 6   looks before a thread gives up its core

At a barrier a thread that has a core of its own keeps it: whoever yields to a busy neighbour waits a time slice,
some milliseconds, for a partner that may be there in a microsecond. With more threads than cores it is the other
way round, the partner needs this core, so patience is short. Between steps a worker spins as long, then returns to
Python to be parked.
"""

from __future__ import annotations

from typing import Any

from pellucid.kernels.library import kernel
from pellucid.kernels.record import RECORD_WORDS, WORD

LINE = 64
EPOCH, STOP, STATUS, PROGRAM, RECORDS, STEP, PATIENCE = (LINE * i for i in range(7))
PASSED = LINE * 8
MAX_THREADS = 256
CONTROL_BYTES = PASSED + LINE * MAX_THREADS

EAGER = 50  # looks at a barrier without a pause: a pause takes as long as the other thread is away
PATIENT, HASTY = 300_000, 1_000  # looks before a thread gives up its core: 15 ms, 50 µs


def _loop(simd: Any) -> Any:
    load, store, relax = simd.atomic_load, simd.atomic_store, simd.relax
    yield_core, call, jit = simd.yield_core, simd.call_kernel, simd.jit
    stride = RECORD_WORDS * WORD

    @jit
    def barrier(control, thread, threads):
        mine = load(control + PASSED + LINE * thread) + 1
        store(control + PASSED + LINE * thread, mine)
        patience = load(control + PATIENCE)
        for other in range(threads):
            looks = 0
            while load(control + PASSED + LINE * other) < mine:
                looks += 1
                if looks > patience:
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
    """(control, thread, threads, seen): run the steps after ``seen``, until stopped or out of patience.

    The last step that was run is left at line ``seen`` of the thread: PASSED line, second word.
    """
    run = _loop(simd)
    load, store, relax = simd.atomic_load, simd.atomic_store, simd.relax

    @simd.jit
    def body(control, thread, threads, seen):
        looks, patience = 0, load(control + PATIENCE)
        while load(control + STOP) == 0:
            if load(control + EPOCH) > seen:
                seen += 1
                run(control, thread, threads)
                store(control + PASSED + LINE * thread + WORD, seen)
                looks = 0
                continue
            looks += 1
            if looks > patience:
                break
            relax()

    return body
