"""The memory budget of a trace, in bytes. Recorded values use bytes of the budget until the values are deleted."""

from __future__ import annotations

import threading

BUDGET = 1 << 30
"""Usual budget of a trace in bytes."""
LIMIT, MOST_LIMIT = 256, 1 << 16
"""Limits of a stream of values, in frames that wait for a reader: the usual and the largest."""


class TraceBudget:
    """A budget of ``most`` bytes for all values that a trace records. ``taken`` is the number of bytes in use.

    Bytes for a request's prompt are reserved before the request runs. The request's values use these bytes first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = self._reserved = 0
        # Reentrant: a garbage collection may release bytes while this thread holds the lock.
        self._lock = threading.RLock()

    def take(self, nbytes: int, reserve: ReservedBytes | None = None) -> TakenBytes | None:
        """Take ``nbytes`` for values, from ``reserve`` as far as possible. Returns None if too few bytes are free."""
        with self._lock:
            reserved = min(nbytes, reserve.left) if reserve is not None else 0
            if self.taken + self._reserved + nbytes - reserved > self.most:
                return None
            if reserve is not None:
                reserve.left -= reserved
            self._reserved -= reserved
            self.taken += nbytes
        return TakenBytes(self, nbytes)

    def reserve(self, nbytes: int) -> ReservedBytes | int:
        """Reserve ``nbytes`` for the values of a prompt. Returns the number of free bytes if too few bytes are free."""
        with self._lock:
            free = self.most - self.taken - self._reserved
            if nbytes > free:
                return free
            self._reserved += nbytes
        return ReservedBytes(self, nbytes)

    def give_back(self, taken: int, reserved: int) -> None:
        """Release bytes that were taken or reserved."""
        with self._lock:
            self.taken -= taken
            self._reserved -= reserved


class TakenBytes:
    """Bytes that values use. They are released when this object is deleted."""

    __slots__ = ("_budget", "_nbytes")

    def __init__(self, budget: TraceBudget, nbytes: int) -> None:
        self._budget, self._nbytes = budget, nbytes

    def __del__(self) -> None:
        self._budget.give_back(self._nbytes, 0)


class ReservedBytes:
    """Reserved bytes. ``left`` is the number of bytes not taken yet. They are released when this object is deleted."""

    __slots__ = ("_budget", "left")

    def __init__(self, budget: TraceBudget, nbytes: int) -> None:
        self._budget, self.left = budget, nbytes

    def __del__(self) -> None:
        self._budget.give_back(0, self.left)
