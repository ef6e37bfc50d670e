"""The key/value cache: the owner of fixed-size pages, which it gives to sequences as they grow.

A page holds the keys and values of 64 tokens in every layer, one layer after the other
(``kernels/attention/kv_layout.py`` defines the layout of a layer), so it can be copied, hashed or freed as one run of
bytes. The system provides the memory of a page when it is first touched: a large limit costs nothing until it is used.

Pages are copied on write: a fork of a sequence shares its pages until one of the two writes to them. Of the shared
pages, only the last one is written to, if it is not full yet; a sequence that is not its only owner gets a copy first.
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
    """The heads of one layer: G key/value heads, keys of width K and values of width V.

    ``kv_dtype`` is one of ``kv_layout.KV_DTYPES``.
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
    """The pages of a sequence in order, and the number of tokens they hold."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class KVCache:
    """``pages`` pages of keys and values for every layer.

    Raises:
        CacheFull: the machine does not have that much memory; from ``allocate``: a sequence needs more pages than
            are free.
    """

    def __init__(self, layers: Iterable[LayerShape], pages: int) -> None:
        self.layers = tuple(layers)
        self.pages = pages
        self.reclaim: Callable[[], None] = lambda: None
        """Called when pages run out, to free those that nobody uses."""
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
        self._reference_counts = [0] * pages

    @property
    def free_pages(self) -> int:
        """Number of pages that nobody owns."""
        return len(self._free)

    def address(self, layer: int, part: str) -> int:
        """The address of a layer's "keys" or "values" in page 0; page p is p * ``page_bytes`` further on."""
        values = self.layers[layer].key_bytes if part == "values" else 0
        return int(self._memory.ctypes.data) + self._offsets[layer] + values

    def allocate(self, table: BlockTable, tokens: int) -> None:
        """Give a block table the pages for ``tokens`` more tokens. The caller adds the tokens to its length after
        the step that writes them.
        """
        missing, shared = self._missing(table, tokens), self._writes_to_shared(table)
        if missing + shared > len(self._free):
            self.reclaim()
            shared = self._writes_to_shared(table)
        if missing + shared > len(self._free):
            raise CacheFull(
                f"{table.length + tokens:,} tokens need {missing + shared:,} more pages of {PAGE} tokens; "
                f"{len(self._free):,} of {self.pages:,} are free, other requests or answers hold the rest: let those "
                "end first, ask for fewer or shorter ones, or load with a larger context"
            )
        if shared:
            self._copy_page(table, table.length // PAGE)
        for _ in range(missing):
            table.pages.append(self._take_page())

    @staticmethod
    def _missing(table: BlockTable, tokens: int) -> int:
        """Pages to append for ``tokens`` more tokens; a step that failed may have left some."""
        return max(0, -(-(table.length + tokens) // PAGE) - len(table.pages))

    def _writes_to_shared(self, table: BlockTable) -> bool:
        """Whether the next token goes into a page that other block tables have too."""
        index, used = divmod(table.length, PAGE)
        return used > 0 and self._reference_counts[table.pages[index]] > 1

    def fork(self, table: BlockTable) -> BlockTable:
        """A copy of a block table that can diverge. It shares the pages as long as possible."""
        pages = table.pages[: -(-table.length // PAGE)]
        for page in pages:
            self._reference_counts[page] += 1
        return BlockTable(pages, table.length)

    def truncate(self, table: BlockTable, length: int) -> None:
        """Drop the tokens from ``length`` on, and free the pages that held only those (0: all pages)."""
        length = min(length, table.length)
        keep = -(-length // PAGE)
        for page in reversed(table.pages[keep:]):
            self._release_page(page)
        del table.pages[keep:]
        table.length = length

    def _take_page(self) -> int:
        page = self._free.pop()
        self._reference_counts[page] = 1
        return page

    def _release_page(self, page: int) -> None:
        self._reference_counts[page] -= 1
        if not self._reference_counts[page]:
            self._free.append(page)

    def _copy_page(self, table: BlockTable, index: int) -> None:
        """Replace one of a block table's pages by a copy of its own."""
        shared, own = table.pages[index], self._take_page()
        size = self.page_bytes
        self._memory[own * size : (own + 1) * size] = self._memory[shared * size : (shared + 1) * size]
        table.pages[index] = own
        self._release_page(shared)
