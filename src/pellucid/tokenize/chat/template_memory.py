"""The memory of a worker process, as its parent limits and measures it.

On Linux the worker limits itself. On Windows the parent puts it into a job object with a limit, so that allocations
fail in the worker. macOS enforces no such limit: the parent measures the worker's memory while it waits.
``memory_of`` makes the object for this system. The module of each system is imported on this system only, because it
takes milliseconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

RETIRED_BYTES = 128 << 20
"""A worker that has more memory after a rendering is replaced."""


class TooMuchMemory(Exception):
    """The worker has more memory than allowed."""


class WorkerMemory:
    """The memory of a worker that limits itself."""

    check: Callable[[], None] | None = None
    """If not None, it is called while the worker works, and raises `TooMuchMemory`."""

    def limit(self, nbytes: int) -> None:
        """Limit the memory during the next rendering."""

    @property
    def is_large(self) -> bool:
        """True if the worker has too much memory for another rendering."""
        return False

    def close(self) -> None:
        """Forget the worker, which has ended."""


class MeasuredMemory(WorkerMemory):
    """The memory of a worker on macOS."""

    def __init__(self, process: int) -> None:
        self._process, self._most = process, sys.maxsize
        self.check = self._check

    def limit(self, nbytes: int) -> None:
        self._most = nbytes

    def _bytes(self) -> int:
        from pellucid.util.macos import process_bytes

        return process_bytes(self._process) or 0

    def _check(self) -> None:
        if self._bytes() > self._most:
            raise TooMuchMemory

    @property
    def is_large(self) -> bool:
        return self._bytes() > RETIRED_BYTES


class JobMemory(WorkerMemory):
    """The memory of a worker on Windows. The worker ends with its parent, because the job does.

    Raises:
        OSError: the worker cannot be limited.
    """

    def __init__(self, process: int) -> None:
        from pellucid.util.windows import JobObject

        self._job = JobObject(process)

    def limit(self, nbytes: int) -> None:
        self._job.limit(nbytes)

    @property
    def is_large(self) -> bool:
        return (self._job.allocated_bytes or 0) > RETIRED_BYTES

    def close(self) -> None:
        self._job.close()


def memory_of(process: int) -> WorkerMemory:
    """The memory of a process. Raises OSError."""
    if sys.platform == "win32":
        return JobMemory(process)
    return MeasuredMemory(process) if sys.platform == "darwin" else WorkerMemory()
