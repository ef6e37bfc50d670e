"""A pool of memory pages of one size, with a count of the users of each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.runtime.memory import address, aligned, give_back


class Pool:
    """``count`` pages of ``page_bytes``.

    The system provides the memory of a page when it is first touched: a large count costs nothing until it is used.

    Raises:
        MemoryError, ValueError: the machine does not have that much memory.
    """

    def __init__(self, page_bytes: int, count: int) -> None:
        self.page_bytes, self.count = page_bytes, count
        self._memory: NDArray[np.uint8] = aligned(page_bytes * count)
        self._free = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._held = 0
        self._touched = bytearray(count)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The memory of all pages, one after the other."""
        return self._memory

    @property
    def address(self) -> int:
        """The address of page 0; page p is p * ``page_bytes`` further on."""
        return address(self._memory)

    @property
    def free(self) -> int:
        """Number of pages that nobody uses."""
        return len(self._free)

    def hold_back(self, count: int) -> None:
        """Give out no more than ``count`` pages from now on."""
        while self._held < self.count - count:
            self.take()
            self._held += 1

    def take(self) -> int:
        """A page for one user, uninitialised. There must be a free one."""
        page = self._free.pop()
        self._users[page] = self._touched[page] = 1
        return page

    def share(self, page: int) -> int:
        """The page, with one more user."""
        self._users[page] += 1
        return page

    def shared(self, page: int) -> bool:
        """Whether a page has several users."""
        return self._users[page] > 1

    def release(self, page: int) -> None:
        """One user less; a page without users is free."""
        self._users[page] -= 1
        if not self._users[page]:
            self._free.append(page)

    @property
    def idle_bytes(self) -> int:
        """Bytes of memory that free pages have, because they were in use before."""
        return self.page_bytes * sum(self._touched[page] for page in self._free)

    def trim(self) -> None:
        """Give the memory of free pages back to the system."""
        for page in sorted(page for page in self._free if self._touched[page]):
            give_back(self.bytes_of(page))
            self._touched[page] = 0

    def bytes_of(self, page: int) -> NDArray[np.uint8]:
        """A view of a page's memory, (page_bytes,) uint8."""
        return self._memory[page * self.page_bytes : (page + 1) * self.page_bytes]

    def copy(self, page: int) -> int:
        """A copy of a page, for one user; the other page has one user less. There must be a free page."""
        own = self.take()
        self.bytes_of(own)[:] = self.bytes_of(page)
        self.release(page)
        return own
