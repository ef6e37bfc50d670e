"""A process that compiles kernels and writes them to the cache folder.

The compiler is written in Python: in a thread it would take the interpreter from the others. The first line of the
process's standard input is its nice value, each further line a key. A key is pickled, since it may hold a packed
layout; only the process that started this one can write there. The process writes a line when it is ready for the
first key, and one when it is done with a key, which says whether the folder has it now.
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

BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; from pellucid.kernels.core.compile_process import main; main()"
)
READY, KEPT, LOST = b"ready\n", b"kept\n", b"lost\n"


def started(nice: int, *, answers: bool) -> subprocess.Popen[bytes] | None:
    """A process that compiles kernels; None if there is no Python that can be started.

    ``nice`` is how much lower its priority is; without ``answers`` what it writes is lost.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    paths = [os.path.abspath(path) for path in sys.path if isinstance(path, str)]
    try:
        process = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-c", BOOT, *paths],
            bufsize=0,  # a thread that waits for a line holds no lock when this process ends
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the process that started it
        )
    except OSError:
        return None
    _write(process, str(nice))
    return process


def tell(process: subprocess.Popen[bytes], key: KernelKey) -> bool:
    """Give a key to a process. Returns False if it has ended already."""
    return _write(process, pickle.dumps(key).hex())


def _write(process: subprocess.Popen[bytes], line: str) -> bool:
    assert process.stdin is not None
    try:
        process.stdin.write(line.encode() + b"\n")
    except OSError:
        return False
    return True


def main() -> None:
    """Compile what standard input names."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else prints is no answer
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
        kept = Library().is_cached([key])  # a library that has loaded nothing knows the folder alone
        answers.buffer.write(KEPT if kept else LOST)
        answers.flush()
    os._exit(0)  # there is nothing to tidy up, which would take a tenth of a second
