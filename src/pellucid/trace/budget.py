"""The bytes that a trace may take: values take room, which is given back when nothing refers to them any more."""

from __future__ import annotations

import threading


class TraceBudget:
    """``most`` bytes that are shared by all that a trace records. ``taken`` are those of values that are there.

    Before a request runs, room for its prompt is reserved; its values take that room first.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = self._reserved = 0
        # Bytes may be given back while this thread holds the lock: by a garbage collection.
        self._lock = threading.RLock()

    def take(self, nbytes: int, reserve: ReservedBytes | None = None) -> TakenBytes | None:
        """Room for values, as far as possible from what is reserved for them; None if there is none."""
        with self._lock:
            kept = min(nbytes, reserve.left) if reserve is not None else 0
            if self.taken + self._reserved + nbytes - kept > self.most:
                return None
            if reserve is not None:
                reserve.left -= kept
            self._reserved -= kept
            self.taken += nbytes
        return TakenBytes(self, nbytes)

    def reserve(self, nbytes: int) -> ReservedBytes | int:
        """Room for the values of a prompt, or if there is none, how many bytes are free."""
        with self._lock:
            free = self.most - self.taken - self._reserved
            if nbytes > free:
                return free
            self._reserved += nbytes
        return ReservedBytes(self, nbytes)

    def give_back(self, taken: int, reserved: int) -> None:
        """As if they had not been taken or reserved."""
        with self._lock:
            self.taken -= taken
            self._reserved -= reserved


class TakenBytes:
    """Bytes that values take; the budget has them again when this object is gone."""

    __slots__ = ("_budget", "_nbytes")

    def __init__(self, budget: TraceBudget, nbytes: int) -> None:
        self._budget, self._nbytes = budget, nbytes

    def __del__(self) -> None:
        self._budget.give_back(self._nbytes, 0)


class ReservedBytes:
    """Bytes that are reserved; ``left`` have not been taken yet, and the budget has these again when it is gone."""

    __slots__ = ("_budget", "left")

    def __init__(self, budget: TraceBudget, nbytes: int) -> None:
        self._budget, self.left = budget, nbytes

    def __del__(self) -> None:
        self._budget.give_back(0, self.left)
