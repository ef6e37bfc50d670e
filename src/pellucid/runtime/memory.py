"""Fresh memory that begins at a cache line, as vectors and per-thread records want it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CACHE_LINE = 64


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """(nbytes,) uint8, not cleared. The system gives the memory when it is first touched."""
    raw = np.empty(nbytes + CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE
    return raw[start : start + nbytes]
