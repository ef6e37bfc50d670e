"""Compiles the kernels of a new model in several processes at once (``compile_process.py``).

One process takes 7 to 24 seconds for the kernels of a model. The longest kernel takes a third of this time or more.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from pellucid.kernels.core.compile_process import KEPT, READY, started, tell
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.fingerprint import source_bytes
from pellucid.kernels.core.library import CompileProgress, can_cache, shared

MOST = 3  # processes: more would only wait for the process with the longest kernel
MEMORY = 250 << 20  # bytes of memory that each process takes
STARTUP_SECONDS = 30.0  # a process that does not answer by then is not Python
WORTH = 60_000
"""Bytes of the sources of all kernels but the longest: from this size on, several processes are faster than one.

The time to compile a kernel follows the size of its sources. Attention and matrix products, some 90 KB each, take 2 to
9 s; most others, 10 to 40 KB, take less than 1 s.
"""
Events: TypeAlias = SimpleQueue[KernelKey | bytes | None]
"""READY from a process, keys that it has compiled, and None when it receives no more keys."""


def compile_together(
    keys: Iterable[KernelKey], processes: int, free: int | None, progress: CompileProgress | None = None
) -> None:
    """Compile the kernels that are not cached, in up to ``processes`` processes with half of ``free`` bytes of memory.

    Does nothing if one process would be as fast, or if compiled kernels cannot be cached. A kernel that does not
    compile stays absent. A later load of an absent kernel compiles it or raises the error.
    """
    library = shared()
    absent = [key for key in dict.fromkeys(keys) if not library.is_cached([key])]
    absent.sort(key=_work, reverse=True)
    count = min(processes, MOST, len(absent))
    if free is not None:
        count = min(count, free // 2 // MEMORY)
    if count < 2 or sum(map(_work, absent[1:])) < WORTH or not can_cache():
        return
    team: list[subprocess.Popen[bytes]] = []
    try:
        while len(team) < count and (one := started(0, answers=True)):
            team.append(one)
        _run(team, absent, progress)
    finally:
        for one in team:
            one.kill()  # closing its input is not enough: a process forked meanwhile may hold it open
        for one in team:
            one.wait()


def _work(key: KernelKey) -> int:
    return source_bytes(definition(key.name).module)


def _run(
    team: list[subprocess.Popen[bytes]], keys: list[KernelKey], progress: CompileProgress | None
) -> None:
    """Give each process the next key as soon as it has compiled a kernel."""
    waiting, events, left = deque(keys), Events(), dict.fromkeys(keys)
    working, wait = 0, STARTUP_SECONDS
    for one in team:
        with contextlib.suppress(RuntimeError):  # no more threads can be started
            threading.Thread(target=_feed, args=(one, waiting, events), daemon=True).start()
            working += 1
    if progress:
        progress(0, len(keys), str(keys[0]))
    while working:
        try:
            event = events.get(timeout=wait)
        except Empty:
            return
        if event is None:
            working -= 1
        elif isinstance(event, bytes):
            wait = threading.TIMEOUT_MAX
        else:
            del left[event]
            if progress:
                progress(len(keys) - len(left), len(keys), str(next(iter(left), "")))


def _feed(process: subprocess.Popen[bytes], waiting: deque[KernelKey], events: Events) -> None:
    """Give a process one key after the other, until no key is left, it ends, or the cache does not keep its kernels."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdout, process.stdin, contextlib.suppress(IndexError, OSError):
            while (line := process.stdout.readline()) != READY:
                if not line:
                    return
            events.put(READY)
            while tell(process, key := waiting.popleft()) and (answer := process.stdout.readline()):
                if answer != KEPT:
                    waiting.clear()
                    return
                events.put(key)
    finally:
        events.put(None)
