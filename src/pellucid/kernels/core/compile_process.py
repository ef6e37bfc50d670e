"""A process that compiles kernels and writes them to the cache folder.

The compiler is written in Python. In a thread of the model's process it would hold the GIL and stop the other threads.

The first line of standard input is the nice value. Each further line is a kernel's key, pickled because a key may hold
a packed layout. Unpickling is safe, because only the parent process can write to this input. The process writes
``READY`` when it is ready for the first key. After each key it writes ``CACHED`` if the cache folder has the kernel
now, else ``NOT_CACHED``.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys

from pellucid.errors import KernelError
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import Library, shared
from pellucid.util.windows import OWN_CONSOLE

BOOT = "import sys; sys.path[:] = sys.argv[1:]; from pellucid.kernels.core.compile_process import main; main()"
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
