"""Memory aligned to cache lines, for vector instructions and per-thread records."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CACHE_LINE = 64
M_ARENA_MAX = -8  # glibc's malloc.h
HEAPS = 2  # number of heaps of the process after ``share_heaps``


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Allocate (nbytes,) uint8, uninitialised. The system provides the memory when it is first touched."""
    raw = np.empty(nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + nbytes]


def address(array: NDArray[Any]) -> int:
    """The address of an array's first element.

    This takes a third of the time of ``array.ctypes.data``, and is called for every token.
    """
    return int(array.__array_interface__["data"][0])


def release_pages(array: NDArray[np.uint8]) -> None:
    """Free the memory of an array, except for system pages that lie only partly inside the array.

    The contents of the array are lost, and later reads find arbitrary numbers. macOS frees the memory when another
    program needs it. Does nothing on systems other than Linux, macOS and Windows.
    """
    start = -(-address(array) // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (address(array) + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length <= 0:
        return
    begin, size = ctypes.c_void_p(start), ctypes.c_size_t(length)
    if sys.platform == "linux":
        # Source: Linux man-pages, madvise(2). Later accesses of anonymous memory succeed, and read zeros.
        _c_library().madvise(begin, size, mmap.MADV_DONTNEED)
    elif sys.platform == "darwin":
        _c_library().madvise(begin, size, mmap.MADV_FREE)  # source: macOS, madvise(2)
    elif sys.platform == "win32":
        from pellucid.util.windows import library

        library("kernel32").DiscardVirtualMemory(begin, size)  # source: memoryapi.h


def release_heap() -> None:
    """Make the allocator return its unused memory to the system. Takes a few milliseconds.

    Needs glibc or macOS. The heaps of Windows return unused memory by themselves.
    """
    if sys.platform == "linux" and (trim := getattr(_c_library(), "malloc_trim", None)):
        trim(ctypes.c_size_t(0))  # source: Linux man-pages, malloc_trim(3)
    elif sys.platform == "darwin":
        # Source: macOS, malloc/malloc.h. No zone and no goal: all memory of all zones.
        _c_library().malloc_zone_pressure_relief(None, ctypes.c_size_t(0))


def share_heaps() -> None:
    """Let all threads of the process share ``HEAPS`` heaps. Needs glibc; call it before threads start.

    By default each thread gets its own heap, up to eight heaps for each core. If a few small blocks of a heap stay in
    use, most of the freed memory of the heap stays resident. With threads that come and go this adds up: after five
    minutes of the soak test, a server had 154 MB of free memory in its heaps. With two heaps it had 31 MB.
    """
    if sys.platform == "linux" and (set_option := getattr(_c_library(), "mallopt", None)):
        set_option(M_ARENA_MAX, HEAPS)  # source: Linux man-pages, mallopt(3)


@cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


class Arena:
    """An allocator that divides large blocks of memory. The system maps large blocks with huge pages if it can.

    A step that reads 100 MB of weights translates the addresses of 25,000 pages of 4 KiB, but of only 50 huge pages of
    2 MiB.
    """

    BLOCK = 64 << 20

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """Allocate (nbytes,) uint8, uninitialised and aligned to a cache line."""
        rounded = -(-nbytes // CACHE_LINE) * CACHE_LINE
        if rounded > len(self._free):
            self._free = aligned(max(rounded, self.BLOCK))
        part, self._free = self._free[:nbytes], self._free[rounded:]
        return part
