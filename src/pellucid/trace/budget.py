"""The bytes that a trace may take: values take room, which is given back when nothing refers to them any more."""

from __future__ import annotations

import threading


class TraceBudget:
    """A number of bytes that is shared by all that a trace records. ``taken`` are those of values that are there.

    Before a request runs, room for its prompt is reserved; that is not taken twice, because what is free is ``most``
    without the larger of both.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = self._reserved = 0
        # They may be given back while this thread holds the lock: by a garbage collection.
        self._lock = threading.RLock()

    def take(self, nbytes: int) -> TakenBytes | None:
        """Room for values; None if there is none."""
        with self._lock:
            if self.taken + nbytes > self.most:
                return None
            self.taken += nbytes
        return TakenBytes(self, nbytes, reserved=False)

    def reserve(self, nbytes: int) -> TakenBytes | int:
        """Room for the values of a prompt, or if there is none, how many bytes are free."""
        with self._lock:
            free = self.most - max(self.taken, self._reserved)
            if nbytes > free:
                return free
            self._reserved += nbytes
        return TakenBytes(self, nbytes, reserved=True)

    def give_back(self, nbytes: int, *, reserved: bool) -> None:
        """As if they had not been taken or reserved."""
        with self._lock:
            if reserved:
                self._reserved -= nbytes
            else:
                self.taken -= nbytes


class TakenBytes:
    """Bytes of a budget, which it has again when this object is gone."""

    __slots__ = ("_budget", "_nbytes", "_reserved")

    def __init__(self, budget: TraceBudget, nbytes: int, *, reserved: bool) -> None:
        self._budget, self._nbytes, self._reserved = budget, nbytes, reserved

    def __del__(self) -> None:
        self._budget.give_back(self._nbytes, reserved=self._reserved)
