"""Compiles kernels in the background, and the kernels of a new model in several processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Collection, Iterable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from pellucid.errors import KernelError
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.library import CompileProgress, Library, can_cache, can_compile, shared
from pellucid.kernels.core.objects import source_bytes
from pellucid.util.interpreter import OWN_CONSOLE

# A process that compiles kernels and writes them to the cache folder.
#
# The compiler is written in Python. In a thread of the model's process it would hold the GIL and stop the other
# threads.
#
# The first line of standard input is the nice value. Each further line is a kernel's key, pickled because a key may
# hold a packed layout. Unpickling is safe, because only the parent process can write to this input. The process writes
# ``READY`` when it is ready for the first key. After each key it writes ``CACHED`` if the cache folder has the kernel
# now, else ``NOT_CACHED``.

BOOT = "import sys; sys.path[:] = sys.argv[1:]; from pellucid.kernels.core.background import main; main()"
READY, CACHED, NOT_CACHED = b"ready\n", b"cached\n", b"not cached\n"


def start_process(nice: int, *, answers: bool) -> subprocess.Popen[bytes] | None:
    """Start a process that compiles kernels. Returns None if no Python can be started.

    ``nice`` is added to its nice value. Without ``answers`` its output is discarded.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-c", BOOT, *paths],
            bufsize=0,  # a buffer has a lock, which a thread that waits for a line would hold when this process ends
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only the parent process
            creationflags=OWN_CONSOLE,  # the same on Windows
        )
    except OSError:
        return None
    _write(process, str(nice))
    return process


def send_key(process: subprocess.Popen[bytes], key: KernelKey) -> bool:
    """Send a key to a process. Returns False if the process has ended."""
    return _write(process, pickle.dumps(key).hex())


def _write(process: subprocess.Popen[bytes], line: str) -> bool:
    assert process.stdin is not None
    try:
        process.stdin.write(line.encode() + b"\n")
    except OSError:
        return False
    return True


def main() -> None:
    """Compile the kernels whose keys arrive on standard input."""
    answers, sys.stdout = sys.stdout, sys.stderr  # other output must not mix with the answers
    gc.disable()  # the process takes 250 MB instead of 200, and 5 % less time
    nice = int(sys.stdin.readline())
    if hasattr(os, "nice"):
        os.nice(nice)
    answers.buffer.write(READY)
    answers.flush()
    for line in sys.stdin:
        key = pickle.loads(bytes.fromhex(line))
        with contextlib.suppress(KernelError):
            shared().load([key])
        # A new library has loaded no kernels, so it checks only the folder.
        cached = Library().is_cached([key])
        answers.buffer.write(CACHED if cached else NOT_CACHED)
        answers.flush()
    os._exit(0)  # skips the interpreter's cleanup, which takes a tenth of a second


# Compiles kernels in the background, and those of a new model in several processes.

NICE = 10  # added to the nice value of the compiling process
POLL_SECONDS = 0.2  # seconds between checks whether this process ends


class BackgroundCompiler:
    """Compiles kernels of a library in the background. Use the instance that ``background_compiler()`` returns."""

    def __init__(self, library: Library) -> None:
        self._library, self._lock = library, threading.Lock()
        self.threads: dict[frozenset[KernelKey], threading.Thread] = {}

    def ready(self, keys: Iterable[KernelKey], *, compiles: bool) -> bool:
        """True if the kernels are loaded or cached. If not, compile them if ``compiles`` is set and Numba is there."""
        keys = list(keys)
        if self._library.is_cached(keys):
            return True
        if not (compiles and can_compile()):
            return False
        key_set = frozenset(keys)
        with self._lock:
            if key_set not in self.threads:
                self.threads[key_set] = threading.Thread(
                    target=self._compile, args=(key_set,), name="pellucid-compiler"
                )
                self.threads[key_set].start()
        return False

    def _compile(self, keys: Collection[KernelKey]) -> None:
        """Compile kernels. This is the body of a thread, which ends soon after the main thread.

        Errors are ignored here, because the next ``load`` of a kernel that does not compile raises its error.
        """
        process = _start(keys) if can_cache() else None
        while process is not None and process.poll() is None:
            if not threading.main_thread().is_alive():
                process.returncode = 0  # the process continues, and nobody waits for it
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
        for key in keys:
            if threading.main_thread().is_alive() and not self._library.is_cached([key]):
                with contextlib.suppress(KernelError):
                    self._library.compile_one(key)


@functools.cache
def background_compiler() -> BackgroundCompiler:
    """Return the background compiler for the library of this process."""
    return BackgroundCompiler(shared())


def _start(keys: Collection[KernelKey]) -> subprocess.Popen[bytes] | None:
    """Start a process that compiles kernels and ends. Returns None if no process can be started."""
    process = start_process(NICE, answers=False)
    if process is None:
        return None
    for key in keys:
        send_key(process, key)
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    return process


# Compiles the kernels of a new model in several processes at once (``background.py``).
#
# One process takes 7 to 24 seconds for the kernels of a model. The longest kernel takes a third of this time or more.

MAX_PROCESSES = 3  # further processes would only wait for the process with the longest kernel
PROCESS_BYTES = 250 << 20  # bytes of memory that each process takes
STARTUP_SECONDS = 30.0  # a process that does not answer in this time is not Python
MIN_SOURCE_BYTES = 60_000
"""Minimum bytes of sources, without the longest kernel, at which several processes are faster than one process.

The time to compile a kernel grows with the size of its sources. Attention and matrix products have some 90 KB each and
take 2 to 9 s. Most other kernels have 10 to 40 KB and take less than 1 s.
"""
Events: TypeAlias = SimpleQueue[KernelKey | bytes | None]
"""Events of a process: READY, then each key that it has compiled, and None when it receives no more keys."""


def compile_in_parallel(
    keys: Iterable[KernelKey], max_processes: int, free: int | None, progress: CompileProgress | None = None
) -> None:
    """Compile the kernels that are not cached, in up to ``max_processes`` processes with half of ``free`` bytes.

    Does nothing if one process would be as fast, if compiled kernels cannot be cached, or without a compiler. Errors
    are ignored here, because a later load of a kernel that is not cached compiles the kernel, or raises the error.
    """
    library = shared()
    absent = [key for key in dict.fromkeys(keys) if not library.is_cached([key])]
    absent.sort(key=_work, reverse=True)
    count = min(max_processes, MAX_PROCESSES, len(absent))
    if free is not None:
        count = min(count, free // 2 // PROCESS_BYTES)
    if count < 2 or sum(map(_work, absent[1:])) < MIN_SOURCE_BYTES or not (can_cache() and can_compile()):
        return
    processes: list[subprocess.Popen[bytes]] = []
    try:
        while len(processes) < count and (process := start_process(0, answers=True)):
            processes.append(process)
        _run(processes, absent, progress)
    finally:
        for process in processes:
            # Closing the input is not enough, because a process that was forked meanwhile may keep the input open.
            process.kill()
        for process in processes:
            process.wait()


def _work(key: KernelKey) -> int:
    return source_bytes(definition(key.name).module)


def _run(processes: list[subprocess.Popen[bytes]], keys: list[KernelKey], progress: CompileProgress | None) -> None:
    """Give each process the next key as soon as it has compiled a kernel."""
    waiting, events, remaining = deque(keys), Events(), dict.fromkeys(keys)
    active, wait = 0, STARTUP_SECONDS
    for process in processes:
        with contextlib.suppress(RuntimeError):  # no more threads can be started
            threading.Thread(target=_feed, args=(process, waiting, events), daemon=True).start()
            active += 1
    if progress:
        progress(0, len(keys), str(keys[0]))
    while active:
        try:
            event = events.get(timeout=wait)
        except Empty:
            return
        if event is None:
            active -= 1
        elif isinstance(event, bytes):
            wait = threading.TIMEOUT_MAX
        else:
            del remaining[event]
            if progress:
                progress(len(keys) - len(remaining), len(keys), str(next(iter(remaining), "")))


def _feed(process: subprocess.Popen[bytes], waiting: deque[KernelKey], events: Events) -> None:
    """Send keys to a process one by one, until no key is left, the process ends, or its kernels are not cached."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with process.stdout, process.stdin, contextlib.suppress(IndexError, OSError):
            while (line := process.stdout.readline()) != READY:
                if not line:
                    return
            events.put(READY)
            while send_key(process, key := waiting.popleft()) and (answer := process.stdout.readline()):
                if answer != CACHED:
                    waiting.clear()
                    return
                events.put(key)
    finally:
        events.put(None)
