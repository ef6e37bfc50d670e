"""Python's garbage collection: off while many long-lived objects are created, frequent while requests run."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 2000
_lock = threading.Lock()
_inside = 0  # number of threads in ``no_collection``
_enabled = False  # True if collection was on before the first of these threads entered


@contextmanager
def no_collection() -> Iterator[None]:
    """Turn garbage collection off in this process while the context lasts. Threads may use it at the same time.

    Reading and planning a model creates 10^5 objects. Repeated collections would take 30 to 60 ms.
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
    """Collect new objects often, and existing objects never. A server calls this when it starts.

    An error in a reference cycle keeps its traceback alive, and the traceback keeps the body and the logits of the
    request alive. Commands that end soon need no frequent collection.
    """
    gc.collect()
    gc.freeze()
    # Python delays a full collection until the number of old objects has grown by a quarter. This call sets it to 0.
    gc.collect()
    gc.set_threshold(NEW_OBJECTS, 10, 10)
