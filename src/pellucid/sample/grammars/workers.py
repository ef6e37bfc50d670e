"""Threads that compile grammars and compute masks, so that no step of the model waits for one request's grammar.

llguidance releases the GIL while it compiles a grammar and while it computes a mask. Its method that consumes a token
holds the GIL; ``consume`` in this file releases the GIL.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from typing import TYPE_CHECKING

from pellucid.runtime.memory import release_heap

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from llguidance import LLExecutor, LLMatcher

POOLS = {"mask": (4, 0), "large": (2, 5), "slow": (2, 10)}
"""The thread pools: the maximum number of threads of each pool, and their niceness. The niceness leaves the CPUs to the
model. macOS and Windows have classes of priorities instead of niceness.

The pool "large" compiles grammars. It also computes the first mask if this mask may take long. The pool "slow" computes
the masks of a grammar with slow masks, so that quick masks in "mask" do not wait behind slow masks.
"""
LONG_COMPILATION = 0.02
"""Seconds. After a longer compilation, ``trim`` is called."""


@functools.cache
def pool(name: str) -> ThreadPoolExecutor:
    """The pool of this name. Threads start on demand."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and only grammars need it

    max_threads, nice = POOLS[name]
    return ThreadPoolExecutor(max_threads, f"pellucid-grammar-{name}", _start_thread, (nice,))


if hasattr(os, "register_at_fork"):  # a forked child would inherit the pools without their threads
    os.register_at_fork(after_in_child=pool.cache_clear)


def _start_thread(nice: int) -> None:
    """Set the niceness of a new thread, and its CPU affinity to the affinity of the process instead of the engine's."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))
        elif sys.platform == "darwin" and nice:
            from pellucid.util import macos

            macos.lower_priority()
        elif sys.platform == "win32" and nice:
            from pellucid.util import windows

            windows.lower_priority()


class _Local(threading.local):
    """Thread-local objects."""

    @functools.cached_property
    def executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(1)


_local = _Local()


def consume(matcher: LLMatcher, token: int, spare: LLMatcher) -> None:
    """Advance a matcher by a token without the GIL. llguidance releases the GIL only for calls with several matchers.

    ``spare`` is the second matcher that such a call needs. It is in an error state, so no token changes it.
    """
    _local.executor.consume_token_par([(matcher, token), (spare, 0)])


def trim(job: Future[None] | None = None) -> None:
    """Return to the system the free memory that the allocator keeps. With a ``job``, wait first until the job ends."""
    if job is not None and not job.cancelled():
        job.exception()
    release_heap()
