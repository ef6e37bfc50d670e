"""Puts off Python's garbage collection while many objects are made that stay."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside = 0  # how many threads are in ``no_collection``
_enabled = False  # whether collection was on when the first of them came


@contextmanager
def no_collection() -> Iterator[None]:
    """No garbage collection in this process until the end; it is then as it was. Threads may do this at the same time.

    Reading a model and planning it makes 10^5 objects. Looking through them again and again takes 30 to 60 ms.
    """
    global _inside, _enabled
    with _lock:
        if not _inside:
            _enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside and _enabled:
                gc.enable()
