"""Threads that compile grammars and compute masks, so that no step of the model waits for one request's grammar.

llguidance releases the interpreter's lock while it compiles a grammar and while it computes a mask. It holds the lock
while it takes a token; ``consume`` goes around that.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from typing import TYPE_CHECKING

from pellucid.runtime.memory import give_back_heap

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from llguidance import LLExecutor, LLMatcher

LANES = {"mask": (4, 0), "large": (2, 5), "slow": (2, 10)}
"""The kinds of threads: how many there are at most, and their niceness on Linux, which leaves processors to the model.

Grammars are compiled in "large", and begin there if they may take long; those that have taken long go on in "slow". So
quick masks do not wait behind others.
"""
LONG = 0.02
"""Seconds of a compilation that is followed by ``trim``."""


@functools.cache
def lane(name: str) -> ThreadPoolExecutor:
    """The threads of a kind, which start when they are needed."""
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and only grammars need it

    most, nice = LANES[name]
    return ThreadPoolExecutor(most, f"pellucid-grammar-{name}", _begin, (nice,))


if hasattr(os, "register_at_fork"):  # a forked child would inherit the pools without their threads
    os.register_at_fork(after_in_child=lane.cache_clear)


def _begin(nice: int) -> None:
    """Set up a thread, which inherits what the engine's thread is bound to."""
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
            os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))


class _Local(threading.local):
    """Objects of a thread."""

    @functools.cached_property
    def executor(self) -> LLExecutor:
        from llguidance import LLExecutor

        return LLExecutor(1)


_local = _Local()


def consume(matcher: LLMatcher, token: int, spare: LLMatcher) -> None:
    """Advance a matcher by a token without the interpreter's lock, which llguidance releases only for several matchers.

    ``spare`` is another one, in a state of error, which no token changes.
    """
    _local.executor.consume_token_par([(matcher, token), (spare, 0)])


def trim(job: Future[None] | None = None) -> None:
    """Give free memory back to the system, once a job has ended. The allocator keeps it otherwise."""
    if job is not None and not job.cancelled():
        job.exception()
    give_back_heap()
