"""Compiles what a new model needs in several processes at a time (``compile_process.py``).

The kernels of a new model take one process 10 to 20 seconds, of which the longest takes half.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections import deque
from collections.abc import Iterable
from queue import SimpleQueue

from pellucid.kernels.core.compile_process import started, tell
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.fingerprint import source_bytes
from pellucid.kernels.core.library import CompileProgress, can_cache, shared

MOST = 4  # processes: each takes some 300 MB, and the longest kernel as long as a fourth of all
WORTH = 60_000
"""Bytes of the sources of all kernels but the longest, from which on it is faster to start processes.

How long a kernel takes to compile follows the size of its sources: attention and matrix products, some 90 KB each,
take 2 to 9 s; the others, 10 to 30 KB, less than 1 s.
"""


def compile_together(
    keys: Iterable[KernelKey], processes: int, progress: CompileProgress | None = None
) -> None:
    """Compile the kernels that are not cached, in up to so many processes; not if that would take as long alone.

    What does not compile stays absent: whoever loads it hears why.
    """
    library = shared()
    absent = [key for key in dict.fromkeys(keys) if not library.is_cached([key])]
    absent.sort(key=_work, reverse=True)
    count = min(processes, MOST, len(absent))
    if count < 2 or sum(map(_work, absent[1:])) < WORTH or not can_cache():
        return
    if team := [one for one in (started(0, answers=True) for _ in range(count)) if one]:
        _run(team, absent, progress)


def _work(key: KernelKey) -> int:
    return source_bytes(definition(key.name).module)


def _run(
    team: list[subprocess.Popen[bytes]], keys: list[KernelKey], progress: CompileProgress | None
) -> None:
    """Give each process the next key as soon as it is done with one. Ctrl-C ends the processes."""
    waiting, ended = deque(keys), SimpleQueue[KernelKey | None]()
    threads = [threading.Thread(target=_feed, args=(one, waiting, ended)) for one in team]
    left, working = dict.fromkeys(keys), len(team)
    try:
        for thread in threads:
            thread.start()
        while working:
            if progress:
                progress(len(keys) - len(left), len(keys), str(next(iter(left), "")))
            if (key := ended.get()) is None:
                working -= 1
            else:
                del left[key]
    except BaseException:
        waiting.clear()
        for one in team:
            one.kill()
        raise
    finally:
        for thread in threads:
            if thread.ident:
                thread.join()
        for one in team:
            one.wait()


def _feed(
    process: subprocess.Popen[bytes], waiting: deque[KernelKey], ended: SimpleQueue[KernelKey | None]
) -> None:
    """Give a process one key after the other, until none is left or the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdout, contextlib.suppress(IndexError, OSError), process.stdin:
            while tell(process, key := waiting.popleft()) and process.stdout.readline():
                ended.put(key)
    finally:
        ended.put(None)
