"""How threads divide the output (T, N) of a matrix product: by columns, and by rows too where threads are many.

With few rows each thread has some columns of all rows, so that it reads its part of the weights and no other. With many
rows that leaves threads without work: 576 columns are 18 blocks, of which 16 threads have one or two. Then groups of
neighbouring threads share the columns, and each thread of a group has some of the rows.

Operations on such an output, activation functions for example, divide it in the same way: no thread needs a value that
another one has computed, and no barrier is needed between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

BLOCK = 32  # columns that are not divided: a block of activations
UNIT = 16  # rows that are not divided: a tile of the widest kernel
FEWEST = 32  # rows of a thread, if rows are divided at all
READING = 16  # a block of weights that comes into a core's cache takes about as long as the products of this many rows
WORTH = 20  # rows are divided more finely if that takes at least one part in this many off the time


def division(simd: Any) -> Any:
    """Make the helper (columns, rows, thread, threads) → a thread's (first column, last, first row, last).

    The ends are excluded. Columns are multiples of ``BLOCK``, except the last one.
    """

    @simd.jit
    def row_parts(blocks, rows, threads):
        """Return how many threads share the same columns."""
        parts, units = 1, (rows + UNIT - 1) // UNIT
        least = (blocks + threads - 1) // threads * (units * UNIT + READING)
        for tried in range(2, min(threads, rows // FEWEST) + 1):
            across = threads // tried  # of 13 threads, two parts of the rows keep 12
            time = (blocks + across - 1) // across * ((units + tried - 1) // tried * UNIT + READING)
            if time * WORTH < least * (WORTH - 1):
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
part_of_thread: Part = division(SimpleNamespace(jit=lambda function: function))
"""The helper as a Python function."""


def column_ends(columns: int, threads: int) -> list[int]:
    """The ends of the threads' columns if rows are not divided, as they never are when a token is generated."""
    return [part_of_thread(columns, 1, thread, threads)[1] for thread in range(threads)]
