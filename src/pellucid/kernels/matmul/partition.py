"""Divides the output (T, N) of a matrix product among threads: by columns, and also by rows if this is faster.

With few rows each thread computes some columns of all rows, so that it reads only its own part of the weights. With
many rows this leaves threads idle: 576 columns are 18 blocks, so each of 16 threads has one block or two. Groups of
neighbouring threads then share columns, and each thread of a group computes some of the rows.

Operations on this output, activation functions for example, divide it in the same way. No thread then needs a value
from another thread, and no barrier is needed between the two operations.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

BLOCK = 32  # columns that are not divided: a block of activations
UNIT = 16  # rows that are not divided: a tile of the widest kernel
MIN_THREAD_ROWS = 32  # minimum rows of a thread, if rows are divided
LOAD_ROWS = 16  # loading a block of weights into a core's cache takes about the time of the products of this many rows
GAIN = 20  # rows are divided more finely if this saves at least 1/GAIN of the time


def partition(simd: Any) -> Any:
    """Make the helper (columns, rows, thread, threads) → a thread's (first column, end, first row, end).

    The ends are excluded. Bounds of columns are multiples of ``BLOCK``, except the end of all columns.
    """

    @simd.jit
    def row_parts(blocks, rows, threads):
        """Return the number of threads that share the same columns."""
        parts, units = 1, (rows + UNIT - 1) // UNIT
        least = (blocks + threads - 1) // threads * (units * UNIT + LOAD_ROWS)
        for tried in range(2, min(threads, rows // MIN_THREAD_ROWS) + 1):
            across = threads // tried  # with two parts, 12 of 13 threads work
            time = (blocks + across - 1) // across * ((units + tried - 1) // tried * UNIT + LOAD_ROWS)
            if time * GAIN < least * (GAIN - 1):
                parts, least = tried, time
        return parts

    @simd.jit
    def part(columns, rows, thread, threads):
        blocks, units = (columns + BLOCK - 1) // BLOCK, (rows + UNIT - 1) // UNIT
        parts = row_parts(blocks, rows, threads)
        across, column, row = threads // parts, thread // parts, thread % parts
        if column >= across:
            return 0, 0, 0, 0
        return (
            BLOCK * (blocks * column // across),
            min(columns, BLOCK * (blocks * (column + 1) // across)),
            UNIT * (units * row // parts),
            min(rows, UNIT * (units * (row + 1) // parts)),
        )

    return part


Part = Callable[[int, int, int, int], tuple[int, int, int, int]]
part_of_thread: Part = partition(SimpleNamespace(jit=lambda function: function))
"""The helper as a Python function."""


def column_ends(columns: int, threads: int) -> list[int]:
    """Return the ends of the threads' columns for a single row, as in decode: rows are then not divided."""
    return [part_of_thread(columns, 1, thread, threads)[1] for thread in range(threads)]
