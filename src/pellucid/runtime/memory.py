"""Fresh memory that begins at a cache line, as vectors and per-thread records want it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_LINE = 64


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """(nbytes,) uint8, not cleared. The system gives the memory when it is first touched."""
    raw = np.empty(nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + nbytes]


def address(array: NDArray[Any]) -> int:
    """Where an array's first number is. As ``array.ctypes.data``, but with a third of the work: every token asks."""
    return int(array.__array_interface__["data"][0])


class Arena:
    """Hands out parts of large blocks of memory, which the system maps with large pages where it can.

    A step that reads all weights of a model would otherwise look up some ten thousand small ones.
    """

    BLOCK = 64 << 20

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,) uint8 from the beginning of a cache line, not cleared."""
        whole = -(-nbytes // CACHE_LINE) * CACHE_LINE
        if whole > len(self._left):
            self._left = aligned(max(whole, self.BLOCK))
        part, self._left = self._left[:nbytes], self._left[whole:]
        return part
