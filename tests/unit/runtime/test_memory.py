"""Memory for kernels: aligned to cache lines, in separate parts of large blocks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.runtime.cache_layout import Pool
from pellucid.runtime.memory import CACHE_LINE, Arena, aligned, release_heap, release_pages


@given(st.integers(1, 10_000))  # NumPy arrays without bytes have no address
def test_aligned_memory_begins_at_a_cache_line(nbytes: int) -> None:
    memory = aligned(nbytes)
    assert memory.shape == (nbytes,)
    assert memory.ctypes.data % CACHE_LINE == 0


@given(st.lists(st.integers(1, 5000), max_size=20))
def test_parts_of_an_arena_are_apart_and_begin_at_cache_lines(sizes: list[int]) -> None:
    arena = Arena()
    arena.BLOCK = 8192  # forces several blocks
    parts = [arena.take(size) for size in sizes]
    for number, part in enumerate(parts):
        part[:] = number
    for number, (part, size) in enumerate(zip(parts, sizes)):
        assert part.shape == (size,)
        assert part.ctypes.data % CACHE_LINE == 0
        assert (part == np.uint8(number)).all()


def test_a_part_may_be_larger_than_a_block() -> None:
    arena = Arena()
    arena.BLOCK = 128
    assert len(arena.take(1000)) == 1000
    assert len(arena.take(10)) == 10


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the memory")
@given(st.integers(0, 5000), st.integers(0, 20_000))
def test_memory_is_given_back_in_whole_pages_and_no_others(start: int, nbytes: int) -> None:
    memory = aligned(40_000)
    memory[:] = 7
    release_pages(memory[start : start + nbytes])
    assert (memory[:start] == 7).all()
    assert (memory[start + nbytes :] == 7).all()
    inside = memory[start : start + nbytes]
    assert set(inside.tolist()) <= {0, 7}
    assert (inside == 0).sum() >= nbytes - 2 * 4096
    memory[:] = 3  # the memory is writable again
    assert (memory == 3).all()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the memory")
def test_freed_memory_of_the_allocator_is_given_back() -> None:
    kept = [np.ones(50_000, np.uint8) for _ in range(2000)]  # too small for separate mappings
    last = np.ones(50_000, np.uint8)  # keeps the allocator from shrinking its memory at the end
    del kept
    before = resident()
    release_heap()
    assert resident() < before - (50 << 20)
    assert last.all()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the memory")
def test_a_pool_gives_back_the_memory_of_free_pages_alone() -> None:
    pool = Pool(1 << 20, 64)
    pages = [pool.take() for _ in range(48)]
    for page in pages:
        pool.bytes_of(page)[:] = page + 1
    before = resident()
    for page in pages[8:]:
        pool.release(page)
    assert pool.idle_bytes == 40 << 20
    pool.trim()
    assert pool.idle_bytes == 0
    assert resident() < before - (30 << 20)
    assert all((pool.bytes_of(page) == page + 1).all() for page in pages[:8])


HEAPS = """
import ctypes, sys, threading
from pellucid.runtime.memory import share_heaps

if sys.argv[1] == "shared":
    share_heaps()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
meet = threading.Barrier(12)

def work():
    meet.wait()
    blocks = [library.malloc(ctypes.c_size_t(50_000)) for _ in range(20)]
    meet.wait()

threads = [threading.Thread(target=work) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library.malloc_stats()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="heaps of glibc")
def test_threads_share_two_heaps() -> None:
    def heaps(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True)
        return len(re.findall(r"^Arena \d+:", done.stderr, re.MULTILINE))

    assert heaps("shared") <= 2 < heaps("separate")
