"""The measured limits of this machine: bytes read and int8 multiply-adds per second."""

from __future__ import annotations

import time

import numpy as np

from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.library import CompileProgress, shared
from pellucid.kernels.ops import roof
from pellucid.runtime.executor import Executor, Program, table
from pellucid.runtime.memory import aligned
from pellucid.runtime.placement import Placement

# More than any cache holds. A larger buffer is read at the same rate.
MAX_BYTES = 2 << 30
# The number of runs that fill the caches, and of the timed runs.
WARM, TIMES = 3, 16
# These rounds take a quarter of a millisecond or more.
MULTIPLY_ROUNDS = 100_000
READ = KernelKey("roof.read")


class Roofs:
    """Measures the limits with its own ``threads`` threads. ``nbytes`` is the largest argument of ``read``.

    ``placement`` places the threads and the buffer that they read, and may be the placement of a model's threads. The
    default is a new placement of ``threads`` threads.

    Raises:
        KernelError: a kernel did not compile.
    """

    def __init__(
        self,
        threads: int,
        nbytes: int,
        progress: CompileProgress | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.threads, self._placement = threads, placement or Placement(threads)
        self._addresses = shared().load([READ, roof.multiply_key()], progress)
        self._strips = max(min(nbytes, MAX_BYTES) // roof.STRIP, threads)
        self._data = aligned(self._strips * roof.STRIP)
        parts = [self._strips * (thread + 1) // threads * roof.STRIP for thread in range(threads)]
        self._placement.divide(self._data, parts)
        self._data[:] = 0
        self._out = np.zeros((threads, 16), np.float32)
        self._executor = Executor(threads, self._placement)

    def read(self, nbytes: int, *, fastest: bool = False) -> float:
        """Bytes read per second, from a buffer of ``nbytes`` (2 GiB at most) that is read repeatedly.

        Returns the mean rate of several runs, or the rate of the ``fastest`` run, which other load affects least.
        """
        strips = max(min(nbytes // roof.STRIP, self._strips), self.threads)
        seconds = self._seconds(READ, fastest, data=self._data.ctypes.data, strips=strips)
        return strips * roof.STRIP / seconds

    def multiply(self, *, fastest: bool = False) -> float:
        """Multiply-adds of 8-bit integers per second, of all threads together, without reading memory."""
        key = roof.multiply_key()
        seconds = self._seconds(key, fastest, rounds=MULTIPLY_ROUNDS, factor=roof.FACTOR)
        return self.threads * MULTIPLY_ROUNDS * roof.round_products(key) / seconds

    def _seconds(self, key: KernelKey, fastest: bool, **fields: int) -> float:
        record = definition(key.name).record
        assert record is not None
        words = record.pack({**fields, "out": self._out.ctypes.data}, self._addresses[key], 0)
        program, step = Program(table([words]), ()), np.zeros(1, np.int64)
        with self._placement.bound():
            for _ in range(WARM):
                self._executor.run(program, step)
            ends = [time.perf_counter()]
            for _ in range(TIMES):
                self._executor.run(program, step)
                ends.append(time.perf_counter())
        return float(np.diff(ends).min()) if fastest else (ends[-1] - ends[0]) / TIMES

    def close(self) -> None:
        """Stop the threads."""
        self._executor.close()
