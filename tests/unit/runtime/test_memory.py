"""Memory for kernels: aligned to cache lines, in separate parts of large blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pellucid.runtime.memory import CACHE_LINE, Arena, aligned


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
