"""Memory that begins at a cache line, as vectors and per-thread records need it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_LINE = 64


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """(nbytes,) uint8, uninitialised. The system provides the memory when it is first touched."""
    raw = np.empty(nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + nbytes]


def address(array: NDArray[Any]) -> int:
    """The address of an array's first element.

    It takes a third of the time of ``array.ctypes.data``, and is called for every token.
    """
    return int(array.__array_interface__["data"][0])


def give_back(array: NDArray[np.uint8]) -> None:
    """Release the whole pages of a part of an array to the system. Nobody needs the contents of the part.

    Later reads of the part find arbitrary numbers. Does nothing on systems other than Linux.
    """
    start = -(-address(array) // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address(array) + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if sys.platform == "linux" and length > 0:
        # Source: Linux man-pages, madvise(2): later accesses of anonymous memory succeed, and find zeros.
        _c_library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def give_back_heap() -> None:
    """Give the system what the allocator keeps of freed memory; takes some milliseconds. Does nothing without glibc."""
    if sys.platform == "linux" and (trim := getattr(_c_library(), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))  # source: Linux man-pages, malloc_trim(3)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class Arena:
    """Allocates parts of large blocks of memory, which the system maps with large pages if it can.

    With pages of 4 KiB, a step that reads 100 MB of weights looks up 25,000 addresses; with pages of 2 MiB, 50.
    """

    BLOCK = 64 << 20

    def __init__(self) -> None:
        self._left = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,) uint8, uninitialised, beginning at a cache line."""
        whole = -(-nbytes // CACHE_LINE) * CACHE_LINE
        if whole > len(self._left):
            self._left = aligned(max(whole, self.BLOCK))
        part, self._left = self._left[:nbytes], self._left[whole:]
        return part
