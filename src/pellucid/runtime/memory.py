"""Memory aligned to cache lines, and its placement on NUMA nodes with the cores of a team's threads."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import sys
from collections.abc import Iterator, Sequence, Set
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest, brief
from pellucid.runtime.processors import Processors, processors

# Memory aligned to cache lines, for vector instructions and per-thread records.

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


# Placement on NUMA nodes: the cores of a team's threads, and the memory of weights and pages.
#
# On a machine with several NUMA nodes (two sockets, for example) a core reads the memory of its own node faster than
# other memory, and the bandwidths of the nodes add up. So the threads are spread evenly over the nodes, and each
# thread's part of every matrix lies in the memory of the thread's node. All threads read keys, values and the matrices
# of experts, so the pages of these arrays are interleaved over the nodes. The system places a page when the page is
# first touched. It does not matter which thread touches the page.

Pin = Literal["none", "nodes", "cores"]
PINS: tuple[str, ...] = get_args(Pin)

HUGE_PAGE = 2 << 20  # bytes of a huge page; the whole page must have one placement policy
# Minimum bytes of a matrix per node. Rounding to huge pages would shift most of a smaller part to another node.
MIN_NODE_BYTES = 2 * HUGE_PAGE

_MBIND = {"x86_64": 237, "aarch64": 235}  # Linux's numbers of the system call mbind(2)
_PREFERRED, _INTERLEAVE = 1, 3


class Placement:
    """Binds ``threads`` threads to cores, and places memory on the nodes of the cores.

    ``pin`` is "nodes" (each thread is bound to the cores of a node), "cores" (each thread is bound to its own core) or
    "none". The default is "nodes" on a machine that has several nodes and lets this process place memory, and "none"
    on other machines.

    Raises:
        InvalidRequest: ``pin`` has another value, there are more threads than cores to bind to, or the system cannot
            bind threads.
    """

    def __init__(self, threads: int, pin: str | None = None, machine: Processors | None = None) -> None:
        machine = machine or processors()
        several, cores = len(machine.nodes) > 1, machine.cores
        self.pin = ("nodes" if several and may_place() else "none") if pin is None else pin
        if self.pin not in PINS:
            raise InvalidRequest(f"pin={brief(pin)}: must be one of {', '.join(PINS)}")
        if self.pin != "none" and not hasattr(os, "sched_setaffinity"):
            raise InvalidRequest(f"pin={brief(pin)}: threads can be bound on Linux only; leave pin out")
        if self.pin == "cores" and threads > len(cores):
            raise InvalidRequest(
                f"pin='cores': {threads} threads, {len(cores)} cores; use at most {len(cores)} threads"
            )
        taken = machine.fast_cores if threads <= len(machine.fast_cores) else cores
        assigned = [taken[thread * len(taken) // threads] for thread in range(threads)]
        self.threads = threads
        self._nodes = tuple(core.node for core in assigned) if several and self.pin != "none" else (0,) * threads
        self._cpus: list[frozenset[int] | None] = [None] * threads
        if self.pin == "cores":
            self._cpus = [core.cpus for core in assigned]
        elif self.pin == "nodes":
            node_cpus = {
                node: frozenset[int]().union(*(core.cpus for core in cores if core.node == node))
                for node in machine.nodes
            }
            self._cpus = [node_cpus[core.node] for core in assigned]

    @property
    def nodes(self) -> tuple[int, ...]:
        """The node of each thread. If memory is not placed, all nodes are 0."""
        return self._nodes

    def cpus_of(self, thread: int) -> frozenset[int] | None:
        """The logical processors that a thread is bound to; None: the thread is not bound."""
        return self._cpus[thread]

    def bind(self, thread: int) -> None:
        """Bind the calling thread as thread ``thread`` of the team, if its processors are still available."""
        if (cpus := self._cpus[thread]) is not None:
            _bind(cpus)

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Context manager that binds the calling thread like thread 0 of the team."""
        if self._cpus[0] is None or not hasattr(os, "sched_getaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        self.bind(0)
        try:
            yield
        finally:
            _bind(before)

    def divide(self, memory: NDArray[np.uint8], ends: Sequence[int]) -> None:
        """Place untouched memory: the bytes from ``ends[t - 1]`` to ``ends[t]`` go to the node of thread t.

        Borders are rounded to huge pages. Memory of less than two huge pages per node is interleaved instead.
        """
        if len(memory) < MIN_NODE_BYTES * len(set(self._nodes)):
            self.interleave(memory)
            return
        begin, start = 0, address(memory)
        for thread, end in enumerate(ends):
            last = thread + 1 == self.threads
            if last or self._nodes[thread] != self._nodes[thread + 1]:
                border = end if last else max(begin, -(-(start + end) // HUGE_PAGE) * HUGE_PAGE - start)
                self._place(memory[begin:border], _PREFERRED, [self._nodes[thread]])
                begin = border

    def interleave(self, memory: NDArray[np.uint8]) -> None:
        """Interleave the pages of untouched memory over the nodes of all threads."""
        self._place(memory, _INTERLEAVE, sorted(set(self._nodes)))

    def _place(self, memory: NDArray[np.uint8], policy: int, nodes: Sequence[int]) -> None:
        """Place the pages that begin in ``memory``. If a node has no free memory, its pages go to other nodes."""
        if len(set(self._nodes)) > 1 and len(memory):
            _mbind(memory, policy, nodes)


def _bind(cpus: Set[int]) -> None:
    """Bind the calling thread to logical processors, if the system can and they are still available."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cpus)


@functools.cache
def may_place() -> bool:
    """True if the system lets this process place memory. Many containers do not."""
    return _mbind(np.empty(4 * mmap.PAGESIZE, np.uint8), _PREFERRED, processors().nodes[:1])


def _mbind(memory: NDArray[np.uint8], policy: int, nodes: Sequence[int]) -> bool:
    """Ask Linux to place the pages that begin in ``memory`` by a policy. True if Linux accepts."""
    number = _MBIND.get(platform.machine())
    if number is None or not sys.platform.startswith("linux"):
        return False
    page = mmap.PAGESIZE
    begin, end = (-(-at // page) * page for at in (address(memory), address(memory) + len(memory)))
    mask = (ctypes.c_ulong * 16)()
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    for node in nodes:
        mask[node // bits] |= 1 << node % bits
    if end <= begin:
        return True
    call = ctypes.CDLL(None).syscall
    return bool(
        call(
            ctypes.c_long(number), ctypes.c_void_p(begin), ctypes.c_ulong(end - begin), ctypes.c_int(policy),
            mask, ctypes.c_ulong(16 * bits), ctypes.c_uint(0),
        ) == 0
    )  # fmt: skip
