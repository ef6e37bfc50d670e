"""Ends a test whose work would not end, or would take hours. It is no measure of speed: benchmarks measure speed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT = 60
"""Seconds of processor time, ten times what any such test takes on a slow machine."""


@contextmanager
def never_endless() -> Iterator[None]:
    """Fail if the block takes more than ``LIMIT`` seconds of the processor, where the system can tell."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def fail(*_: object) -> None:
        raise AssertionError(f"more than {LIMIT} s of the processor's time")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
