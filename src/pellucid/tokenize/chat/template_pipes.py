"""The two pipes to a worker process, with deadlines, and the limits of its memory."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The memory of a worker process, as its parent limits and measures it. On Linux the worker limits itself. On Windows
# the parent puts it into a job object with a limit, so that allocations fail in the worker. macOS enforces no such
# limit: the parent measures the worker's memory while it waits. ``memory_of`` makes the object for this system. The
# module of each system is imported on this system only, because it takes milliseconds.

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

    Raises OSError: the worker cannot be limited.
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


# The two pipes to a worker process, with a deadline for each exchange. ``PolledPipes`` wait with poll(2). Windows has
# no such call for pipes: with ``WatchedPipes`` the calling thread blocks, and a timer kills the worker at the deadline,
# which ends the block. ``pipes_of`` makes the pipes for this system.

# Capacity of a pipe, if the system allows it. With a smaller pipe, the two processes wait for each other in turns.
PIPE_BYTES = 1 << 20
# Seconds between two calls of ``check``.
CHECK_SECONDS = 0.02


class WorkerEnded(Exception):
    """The worker closed its pipes."""


class TimedOut(Exception):
    """The worker did not answer before the deadline."""


class Pipes:
    """The pipes to a worker. ``until`` of a subclass determines how a deadline ends an exchange."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.requests, self.replies = process, process.stdin, process.stdout

    def write(self, data: bytes) -> None:
        """Write all bytes. Raises `TimedOut`, `WorkerEnded`."""
        unsent = memoryview(data)
        while unsent:
            self._wait_to_write()
            try:
                unsent = unsent[os.write(self.requests.fileno(), unsent[:PIPE_BYTES]) :]
            except OSError:  # a broken pipe; Windows has several errors for it
                raise WorkerEnded from None

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes. Raises `TimedOut`, `WorkerEnded`."""
        parts, missing = list[bytes](), size
        while missing:
            self._wait_to_read()
            try:
                part = os.read(self.replies.fileno(), min(missing, PIPE_BYTES))
            except OSError:
                raise WorkerEnded from None
            if not part:
                raise WorkerEnded
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _wait_to_write(self) -> None: ...

    def _wait_to_read(self) -> None: ...

    def close(self) -> None:
        """Close both pipes."""
        self.requests.close()
        self.replies.close()


class WatchedPipes(Pipes):
    """Pipes with blocking calls. A timer kills the worker at the deadline, which ends them."""

    def __init__(self, process: subprocess.Popen[bytes], check: Callable[[], None] | None = None) -> None:
        """``check`` is not called."""
        super().__init__(process)
        self._late = False

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Write and read in this context, at the latest at ``deadline``, in seconds of ``time.monotonic``."""
        timer = threading.Timer(max(deadline - time.monotonic(), 0), self._kill)
        timer.daemon = True
        timer.start()
        try:
            yield
        except WorkerEnded:
            if self._late:
                raise TimedOut from None
            raise
        finally:
            timer.cancel()

    def _kill(self) -> None:
        self._late = True
        self.process.kill()


if sys.platform == "win32":
    pipes_of = WatchedPipes
else:

    class PolledPipes(Pipes):
        """Pipes without blocking calls. ``check`` is called every ``CHECK_SECONDS``, and may raise an exception."""

        def __init__(self, process: subprocess.Popen[bytes], check: Callable[[], None] | None = None) -> None:
            super().__init__(process)
            self._check, self._deadline = check, 0.0
            os.set_blocking(self.requests.fileno(), False)
            os.set_blocking(self.replies.fileno(), False)

        @contextmanager
        def until(self, deadline: float) -> Iterator[None]:
            self._deadline = deadline
            yield

        def _wait_to_write(self) -> None:
            self._wait(self.requests.fileno(), select.POLLOUT)

        def _wait_to_read(self) -> None:
            self._wait(self.replies.fileno(), select.POLLIN)

        def _wait(self, descriptor: int, event: int) -> None:
            poll = select.poll()
            poll.register(descriptor, event)
            while True:
                left = max(self._deadline - time.monotonic(), 0)
                if poll.poll(1000 * (left if self._check is None else min(left, CHECK_SECONDS))):
                    return
                if time.monotonic() >= self._deadline:
                    raise TimedOut
                if self._check is not None:
                    self._check()

    pipes_of = PolledPipes
