"""Waits that Ctrl-C interrupts on every system.

Python on Windows cannot interrupt a thread that waits for a lock. There a wait ends after ``SLICE`` seconds and begins
again, and Ctrl-C raises its exception in between.
"""

from __future__ import annotations

import sys
import threading
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")

SLICE: float | None = 0.1 if sys.platform == "win32" else None


def get(queue: SimpleQueue[T]) -> T:
    """The next item of a queue."""
    while True:
        try:
            return queue.get(timeout=SLICE)
        except Empty:
            pass


def join(thread: threading.Thread) -> None:
    """Wait until a thread ends."""
    thread.join(SLICE)
    while thread.is_alive():
        thread.join(SLICE)
