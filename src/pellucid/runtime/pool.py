"""A pool of memory pages of one size, with a reference count for each page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pellucid.runtime.memory import address, aligned, release_pages


class Pool:
    """``count`` pages of ``page_bytes`` bytes, with a reference count for each page.

    The system provides the memory of a page when the page is first touched, so unused pages take no memory.

    Raises:
        MemoryError, ValueError: the machine has less memory than the pages need.
    """

    def __init__(self, page_bytes: int, count: int) -> None:
        self.page_bytes, self.count = page_bytes, count
        self._memory: NDArray[np.uint8] = aligned(page_bytes * count)
        self._free = list(range(count - 1, -1, -1))
        self._references = [0] * count
        self._reserved = 0
        self._touched = bytearray(count)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """The memory of all pages, one after the other."""
        return self._memory

    @property
    def address(self) -> int:
        """The address of page 0. Page p is at this address + p * ``page_bytes``."""
        return address(self._memory)

    @property
    def free(self) -> int:
        """Number of free pages."""
        return len(self._free)

    def reserve(self, count: int) -> None:
        """Reserve pages, so that at most ``count`` pages are usable from now on."""
        while self._reserved < self.count - count:
            self.take()
            self._reserved += 1

    def take(self) -> int:
        """Allocate an uninitialised page with reference count 1. A page must be free."""
        page = self._free.pop()
        self._references[page] = self._touched[page] = 1
        return page

    def share(self, page: int) -> int:
        """Increment the reference count of a page and return the page."""
        self._references[page] += 1
        return page

    def shared(self, page: int) -> bool:
        """True if the reference count of a page is above 1."""
        return self._references[page] > 1

    def release(self, page: int) -> None:
        """Decrement the reference count of a page. At 0 the page is free."""
        self._references[page] -= 1
        if not self._references[page]:
            self._free.append(page)

    @property
    def idle_bytes(self) -> int:
        """Bytes of memory that free pages still occupy because they were used before."""
        return self.page_bytes * sum(self._touched[page] for page in self._free)

    def trim(self) -> None:
        """Return the memory of free pages to the system."""
        for page in sorted(page for page in self._free if self._touched[page]):
            release_pages(self.bytes_of(page))
            self._touched[page] = 0

    def bytes_of(self, page: int) -> NDArray[np.uint8]:
        """A view of a page's memory, (page_bytes,) uint8."""
        return self._memory[page * self.page_bytes : (page + 1) * self.page_bytes]

    def copy(self, page: int) -> int:
        """Copy a page to a new page with reference count 1, and release the original. A page must be free."""
        new = self.take()
        self.bytes_of(new)[:] = self.bytes_of(page)
        self.release(page)
        return new
