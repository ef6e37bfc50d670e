"""The two pipes to a worker process, with a deadline for each exchange.

``PolledPipes`` wait with poll(2). Windows has no such call for pipes: with ``WatchedPipes`` the calling thread blocks,
and a timer kills the worker at the deadline, which ends the block. ``pipes_of`` makes the pipes for this system.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
            """Write and read in this context, at the latest at ``deadline``, in seconds of ``time.monotonic``."""
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
