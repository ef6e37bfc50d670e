"""The key/value cache: one owner of fixed-size pages, handed to sequences as they grow.

A page holds the keys and values of 64 tokens in every layer, one layer after the other
(``kernels/attention/kv_layout.py`` has the layout of a layer), so it can be copied, hashed or given back as one run of
bytes. The memory of a page is given by the system when it is first touched: a large limit costs nothing until it is
used.

A fork of a sequence has the same pages until one of the two writes to them: only the page that is not full yet is
written to, and whoever is about to do so, and is not its only owner, gets a copy first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import CacheFull
from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.runtime.memory import aligned


@dataclass(frozen=True)
class LayerShape:
    """One layer's heads: G key/value heads, keys of width K and values of width V, in a form of
    ``kv_layout.KV_DTYPES``.
    """

    kv_heads: int
    head_dim: int
    value_dim: int
    kv_dtype: str = "f16"

    @property
    def key_bytes(self) -> int:
        """Bytes of a page's keys in this layer."""
        return self.kv_heads * head_bytes(self.kv_dtype, self.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's keys and values in this layer."""
        return self.key_bytes + self.kv_heads * head_bytes(self.kv_dtype, self.value_dim)


@dataclass
class BlockTable:
    """What a request owns of the cache: its pages in order, and how many tokens they hold."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class KVCache:
    """``pages`` pages for every layer.

    Raises:
        CacheFull: the machine does not give that much memory; from ``allocate``: a sequence needs more pages than
            are free.
    """

    def __init__(self, layers: Iterable[LayerShape], pages: int) -> None:
        self.layers = tuple(layers)
        self.pages = pages
        self.reclaim: Callable[[], None] = lambda: None
        """Called when pages run out, to give back those that nobody is using."""
        self._offsets: list[int] = []
        self.page_bytes = 0
        for layer in self.layers:
            self._offsets.append(self.page_bytes)
            self.page_bytes += layer.page_bytes
        total = self.page_bytes * pages
        try:
            self._memory: NDArray[np.uint8] = aligned(total)
        except (MemoryError, ValueError):
            raise CacheFull(
                f"keys and values of {pages * PAGE:,} tokens take {total / 1e9:,.0f} GB, more than this machine "
                "gives: load with a smaller context"
            ) from None
        self._free = list(range(pages - 1, -1, -1))
        self._owners = [0] * pages

    @property
    def free_pages(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def address(self, layer: int, part: str) -> int:
        """Where a layer's "keys" or "values" begin in page 0; page p is p * ``page_bytes`` further on."""
        values = self.layers[layer].key_bytes if part == "values" else 0
        return int(self._memory.ctypes.data) + self._offsets[layer] + values

    def allocate(self, table: BlockTable, tokens: int) -> None:
        """Give a table the pages for ``tokens`` more tokens. Its length is set by the step that fills them."""
        shared = bool(table.length % PAGE) and self._owners[table.pages[table.length // PAGE]] > 1
        wanted = -(-(table.length + tokens) // PAGE) - len(table.pages) + shared
        if wanted > len(self._free):
            self.reclaim()
        if wanted > len(self._free):
            raise CacheFull(
                f"{table.length + tokens:,} tokens need {wanted:,} more pages of {PAGE} tokens; "
                f"{len(self._free):,} of {self.pages:,} are free, other requests or answers hold the rest: let those "
                "end first, ask for fewer or shorter ones, or load with a larger context"
            )
        if shared:
            self._own(table, table.length // PAGE)
        for _ in range(wanted - shared):
            table.pages.append(self._take())

    def fork(self, table: BlockTable) -> BlockTable:
        """A table with the same tokens, for a sequence that goes on otherwise.

        It has the same pages for as long as it can.
        """
        pages = table.pages[: -(-table.length // PAGE)]
        for page in pages:
            self._owners[page] += 1
        return BlockTable(pages, table.length)

    def truncate(self, table: BlockTable, length: int) -> None:
        """Forget the tokens from ``length`` on, and give back the pages that held only those (0: all)."""
        length = min(length, table.length)
        keep = -(-length // PAGE)
        for page in reversed(table.pages[keep:]):
            self._release(page)
        del table.pages[keep:]
        table.length = length

    def _take(self) -> int:
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if not self._owners[page]:
            self._free.append(page)

    def _own(self, table: BlockTable, index: int) -> None:
        """Give a table a copy of one of its pages."""
        shared, own = table.pages[index], self._take()
        size = self.page_bytes
        self._memory[own * size : (own + 1) * size] = self._memory[shared * size : (shared + 1) * size]
        table.pages[index] = own
        self._release(shared)
