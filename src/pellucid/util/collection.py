"""Python's garbage collection: put off while many objects are made that stay, and early while requests come and go."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 2000
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


def collect_requests() -> None:
    """Let the collector look at new objects alone, and often: a program that answers many requests calls this first.

    An error in a reference cycle keeps its traceback, and with it the body and the logits of its request. A command
    collects late, because most commands end soon.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # full collections come when the old objects have grown by a quarter: none is old now
    gc.set_threshold(NEW_OBJECTS, 10, 10)
