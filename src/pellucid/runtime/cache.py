"""The key/value cache: one owner of fixed-size pages, handed to sequences as they grow.

A page holds 64 tokens of one layer's keys and values (``kernels/attention.py`` has the layout); page p of a
sequence is the same number in every layer. Pages come from one pool whose memory the system gives when it is
first touched, so a large limit costs nothing until it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import CacheFull
from pellucid.kernels.attention import PAGE

ALIGNMENT = 64


@dataclass(frozen=True)
class LayerShape:
    """One layer's heads: G key/value heads of width K."""

    kv_heads: int
    head_dim: int

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of keys, and of a page of values: float16."""
        return self.kv_heads * self.head_dim * PAGE * 2


@dataclass
class Sequence:
    """What a request owns of the cache: its pages in order, and how many tokens they hold."""

    pages: list[int] = field(default_factory=list)
    length: int = 0


class KVCache:
    """``pages`` pages for every layer.

    Raises:
        CacheFull: from ``extend``, when a sequence needs more pages than are free.
    """

    def __init__(self, layers: list[LayerShape], pages: int) -> None:
        self.layers = layers
        self.pages = pages
        self._free = list(range(pages - 1, -1, -1))
        total = sum(2 * layer.page_bytes * pages for layer in layers)
        self._memory: NDArray[np.uint8] = np.empty(total + ALIGNMENT, np.uint8)
        start = int(self._memory.ctypes.data)
        start += -start % ALIGNMENT
        self._addresses: list[tuple[int, int]] = []
        for layer in layers:
            size = layer.page_bytes * pages
            self._addresses.append((start, start + size))
            start += 2 * size

    @property
    def free_pages(self) -> int:
        """Pages that nobody owns."""
        return len(self._free)

    def address(self, layer: int, part: str) -> int:
        """Where a layer's pages of "keys" or "values" begin."""
        keys, values = self._addresses[layer]
        return keys if part == "keys" else values

    def extend(self, sequence: Sequence, tokens: int) -> None:
        """Give a sequence the pages for ``tokens`` more tokens. Its length is set by the step that fills them."""
        wanted = -(-(sequence.length + tokens) // PAGE) - len(sequence.pages)
        if wanted > len(self._free):
            raise CacheFull(
                f"{sequence.length + tokens} tokens need {wanted} more pages of {PAGE} tokens; "
                f"{len(self._free)} of {self.pages} are free: use a shorter prompt or a larger context"
            )
        for _ in range(wanted):
            sequence.pages.append(self._free.pop())

    def truncate(self, sequence: Sequence, length: int) -> None:
        """Forget a sequence's tokens from ``length`` on, and give back the pages that held only those (0: all)."""
        keep = -(-length // PAGE)
        self._free.extend(reversed(sequence.pages[keep:]))
        del sequence.pages[keep:]
        sequence.length = length
