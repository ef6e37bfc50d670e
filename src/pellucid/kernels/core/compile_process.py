"""Processes that compile kernels and write them to the cache folder.

The compiler is written in Python: in a thread it would take the interpreter from the others. A process gets its keys
on its standard input, a line for each, after a line with the number by which its priority is lower. A key is pickled,
since it may hold a packed layout; only the process that started this one can write there. It writes a line whenever it
is done with a key, whether that did compile or not.
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
from pellucid.kernels.core.library import shared

BOOT = (
    "import sys; sys.path[:] = sys.argv[1:]; from pellucid.kernels.core.compile_process import main; main()"
)


def started(nice: int, *, answers: bool) -> subprocess.Popen[bytes] | None:
    """A process that compiles kernels; None if there is no Python that can be started.

    ``nice`` is how much lower its priority is; without ``answers`` what it writes is lost.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        return None
    try:
        process = subprocess.Popen(
            [sys.executable, "-X", "utf8", "-c", BOOT, *map(os.path.abspath, sys.path)],
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
        process.stdin.flush()
    except OSError:
        return False
    return True


def main() -> None:
    """Compile what standard input names."""
    gc.disable()  # nearly all objects stay in use: 250 MB instead of 200, and 5 % of the time
    nice = int(sys.stdin.readline())
    if hasattr(os, "nice"):
        os.nice(nice)
    for line in sys.stdin:
        with contextlib.suppress(KernelError):
            shared().load([pickle.loads(bytes.fromhex(line))])
        print(flush=True)
    os._exit(0)  # it has nothing to tidy up, which would take a tenth of a second
