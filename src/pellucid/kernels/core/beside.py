"""Compiles kernels beside what runs, so that no call has to wait for the compiler.

The compiler runs in a process of low priority (``compile_process.py``). It goes on when this process ends, so that the
next one finds the kernels. A thread waits for it. Where nothing can be kept in the cache folder, or no process started,
the thread compiles itself.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import threading
from collections.abc import Collection, Iterable

from pellucid.errors import KernelError
from pellucid.kernels.core.compile_process import started, tell
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import Library, can_cache, shared

NICE = 10  # how much lower its priority is
LOOKS = 0.2  # seconds between looks whether this process ends


class Beside:
    """Kernels of a library that are compiled beside what runs. Use the instance that ``beside()`` returns."""

    def __init__(self, library: Library) -> None:
        self._library, self._lock = library, threading.Lock()
        self.threads: dict[frozenset[KernelKey], threading.Thread] = {}

    def ready(self, keys: Iterable[KernelKey], *, compiles: bool) -> bool:
        """Whether kernels are loaded or cached. If not, and if it ``compiles``, that begins now."""
        keys = list(keys)
        if self._library.is_cached(keys):
            return True
        if not compiles:
            return False
        wanted = frozenset(keys)
        with self._lock:
            if wanted not in self.threads:
                self.threads[wanted] = threading.Thread(
                    target=self._compile, args=(wanted,), name="pellucid-compiler"
                )
                self.threads[wanted].start()
        return False

    def _compile(self, keys: Collection[KernelKey]) -> None:
        """Compile kernels: the body of a thread, which ends soon after the main thread.

        What does not compile stays absent; whoever wants it later hears why.
        """
        process = _started(keys) if can_cache() else None
        while process is not None and process.poll() is None:
            if not threading.main_thread().is_alive():
                process.returncode = 0  # it goes on, and nobody waits for it
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LOOKS)
        for key in keys:
            if threading.main_thread().is_alive() and not self._library.is_cached([key]):
                with contextlib.suppress(KernelError):
                    self._library.compile_one(key)


@functools.cache
def beside() -> Beside:
    """What is compiled beside this process, for its library."""
    return Beside(shared())


def _started(keys: Collection[KernelKey]) -> subprocess.Popen[bytes] | None:
    """A process that compiles kernels and ends; None if none can be started."""
    process = started(NICE, answers=False)
    if process is None:
        return None
    for key in keys:
        tell(process, key)
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    return process
