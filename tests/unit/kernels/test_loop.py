"""The loop and its barrier ("loop.lead", "loop.work") with more threads than cores: no thread runs ahead.

The program permutes rows from one buffer into another and back. The threads share the rows, so each thread reads rows
that others have just written, and a thread that is ahead or behind breaks the permutation.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernels import Batch, guarded

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.core.loop import RADIX
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.ops.embedding import PickRecord
from pellucid.runtime.executor import Executor, Program, table

PICK = KernelKey("pick")
ROWS = {"index": StepRecord.at.output_rows, "rows": StepRecord.at.outputs}


def permuting(rows: int, width: int, operations: int) -> tuple[Program, np.ndarray, np.ndarray]:
    """A program of picks, alternately from ``x`` to another buffer and back; both buffers."""
    x, y = guarded((rows, width)), guarded((rows, width))
    x[...] = np.arange(rows)[:, None]
    address = shared().load([PICK])[PICK]
    records = []
    for i in range(operations):
        source, out = (x, y) if i % 2 == 0 else (y, x)
        fields = {"x": source.ctypes.data, "width": width, "out": out.ctypes.data, **ROWS}
        records.append(PickRecord.pack(fields, address, 1))
    return Program(table(records), (x, y)), x, y


@pytest.mark.parametrize("threads", [1, 2, 3, 4, RADIX + 1, 3 * RADIX - 1])
@settings(max_examples=10)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(1, 60))
def test_every_operation_sees_all_that_the_one_before_it_wrote(
    threads: int, rows: int, vectors: int, pairs: int
) -> None:
    program, x, _ = permuting(rows, 16 * vectors, 2 * pairs)
    order = np.random.default_rng(rows).permutation(rows)
    batch, want = Batch([rows], output_rows=list(order)), np.arange(rows)
    executor = Executor(threads)
    try:
        for _ in range(5):  # steps in immediate succession
            executor.run(program, batch.record)
            for _ in range(2 * pairs):
                want = want[order]
    finally:
        executor.close()
    assert np.array_equal(x, np.repeat(want[:, None], 16 * vectors, 1))


@pytest.mark.parametrize("threads", [2 * (os.cpu_count() or 1), RADIX * RADIX, RADIX * RADIX + 1])
def test_barrier_holds_over_thousands_of_operations_on_more_threads_than_cores(threads: int) -> None:
    rows, operations = 2 * threads + 1, 1000 if threads < RADIX * RADIX else 200
    program, x, _ = permuting(rows, 16, operations)
    order = np.roll(np.arange(rows), 1)
    batch = Batch([rows], output_rows=list(order))
    executor = Executor(threads)
    try:
        for _ in range(3):
            executor.run(program, batch.record)
    finally:
        executor.close()
    assert np.array_equal(x[:, 0], (np.arange(rows) - 3 * operations) % rows)


def test_threads_meet_at_the_end_of_a_step_without_being_told_to() -> None:
    program, _, y = permuting(64, 1024, 1)
    program.records[:, 1] = 0  # no barrier after the operation
    batch = Batch([64], output_rows=list(range(64)))
    executor = Executor(4)
    try:
        for _ in range(50):
            y[...] = -1
            executor.run(program, batch.record)
            assert np.array_equal(y[:, -1], np.arange(64))
    finally:
        executor.close()
