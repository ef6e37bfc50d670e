"""Compiles kernels in the background, so that no call waits for the compiler.

The compiler runs in a process of low priority (``compile_process.py``), and a thread waits for it. The compiling
process continues after this process ends, so that the next process finds the kernels in the cache. If the cache folder
cannot be written, or no process can be started, the thread compiles the kernels itself.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import threading
from collections.abc import Collection, Iterable

from pellucid.errors import KernelError
from pellucid.kernels.core.compile_process import send_key, start_process
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import Library, can_cache, can_compile, shared

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
