"""Compiles what a new model needs in several processes at a time (``compile_process.py``).

One process takes 7 to 24 seconds for the kernels of a model, a third of it and more for the longest.
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

MOST = 3  # processes: more would only wait for the one with the longest kernel
MEMORY = 250 << 20  # bytes that each takes
STARTUP_SECONDS = 30.0  # after which a process that does not answer is something else than Python
WORTH = 60_000
"""Bytes of the sources of all kernels but the longest, from which on it is faster to start processes.

How long a kernel takes to compile follows the size of its sources: attention and matrix products, some 90 KB each,
take 2 to 9 s; most others, 10 to 40 KB, less than 1 s.
"""
Events: TypeAlias = SimpleQueue[KernelKey | bytes | None]
"""READY of a process, keys that it has compiled, and None when it gets no more."""


def compile_together(
    keys: Iterable[KernelKey], processes: int, free: int | None, progress: CompileProgress | None = None
) -> None:
    """Compile the kernels that are not cached, in up to so many processes, with half of the ``free`` bytes of memory.

    Nothing is compiled where one process would be as fast, or what is compiled could not be kept. What does not compile
    stays absent. Whoever loads an absent kernel compiles it, or hears why that fails.
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
            one.kill()  # a process forked meanwhile may hold its input open
        for one in team:
            one.wait()


def _work(key: KernelKey) -> int:
    return source_bytes(definition(key.name).module)


def _run(
    team: list[subprocess.Popen[bytes]], keys: list[KernelKey], progress: CompileProgress | None
) -> None:
    """Give each process the next key as soon as it is done with one."""
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
    """Give a process one key after the other, until none is left, it has ended, or what it compiles is not kept."""
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
