"""The layout of cache pages and the pool of pages with a reference count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.kernels.attention.kv_layout import PAGE, head_bytes
from pellucid.runtime.memory import CACHE_LINE, address, aligned, release_pages
from pellucid.runtime.processors import machine_bytes

# The layout of cache pages: the data of each layer, and the groups of layers that share pages.
#
# Layers that keep the same tokens form a *group*. The groups are: all layers with full attention, all layers with a
# window of the same size, and all layers with chunks of the same size.
#
# A page holds the keys and values of 64 tokens in every layer of its group, one layer after the other
# (``kernels/attention/kv_layout.py`` defines the layout of a layer). A page is contiguous, so it is copied, hashed or
# freed as a whole.
#
# Recurrent layers keep one state per sequence instead of data for each token. All recurrent layers form one group, and
# a page of this group holds the states of all its layers.

SLACK = PAGE
"""Number of tokens kept beyond a window, so that a sequence can be truncated by a few tokens."""
MAX_SNAPSHOTS = 4
"""Number of snapshots of a sequence with a recurrent state. A sequence that has only windows keeps one snapshot."""


class LayerShape(Struct, frozen=True):
    """The heads of one layer: G key/value heads, keys of width K and values of width V.

    ``kv_dtype`` is a name in ``kv_layout.KV_DTYPES``. ``window`` is the number of tokens that a token attends to,
    including itself (0: all tokens). With ``chunked``, a token attends only to its own chunk of ``window`` tokens.
    """

    kv_heads: int
    head_dim: int
    value_dim: int
    kv_dtype: str = "f16"
    window: int = 0
    chunked: bool = False
    recurrent: ClassVar[bool] = False

    @property
    def key_bytes(self) -> int:
        """Bytes of this layer's keys in a page."""
        return self.kv_heads * head_bytes(self.kv_dtype, self.head_dim)

    @property
    def page_bytes(self) -> int:
        """Bytes of this layer's keys and values in a page."""
        return self.key_bytes + self.kv_heads * head_bytes(self.kv_dtype, self.value_dim)

    def seen(self, length: int) -> int:
        """Number of tokens that the last token of a sequence of ``length`` tokens attends to, including itself."""
        return length - _first_seen(length, self.window, self.chunked)

    def offset(self, part: str) -> int:
        """Offset in bytes of the "keys" or "values" in the layer's part of a page."""
        return {"keys": 0, "values": self.key_bytes}[part]


class StateShape(Struct, frozen=True):
    """The state of one recurrent layer: the name of each part, and its number of float32 values."""

    parts: tuple[tuple[str, int], ...]
    window: ClassVar[int] = 0
    chunked: ClassVar[bool] = False
    recurrent: ClassVar[bool] = True

    @property
    def page_bytes(self) -> int:
        """Bytes of the layer's state. Each part begins at a cache line."""
        return sum(_lines(size) for _, size in self.parts)

    def offset(self, part: str) -> int:
        """Offset in bytes of a part in the layer's state."""
        names = [name for name, _ in self.parts]
        return sum(_lines(size) for _, size in self.parts[: names.index(part)])


def _lines(values: int) -> int:
    """Bytes of a number of float32 values, rounded up to whole cache lines."""
    return -(-4 * values // CACHE_LINE) * CACHE_LINE


CachedLayer: TypeAlias = LayerShape | StateShape


class LayerGroup(Struct, frozen=True):
    """Layers that share pages. ``offsets`` maps the number of a layer to its offset in a page, in bytes."""

    window: int
    chunked: bool
    recurrent: bool
    offsets: Mapping[int, int]
    page_bytes: int

    def first_needed(self, length: int) -> int:
        """Index of the first page that a sequence of ``length`` tokens still needs."""
        return _first_seen(length + 1, self.window, self.chunked) // PAGE


def _first_seen(length: int, window: int, chunked: bool) -> int:
    """Index of the first token that the last token of a sequence of ``length`` tokens attends to."""
    if not window:
        return 0
    return max(0, (length - 1) // window * window if chunked else length - window)


def groups_of(layers: Iterable[CachedLayer]) -> tuple[LayerGroup, ...]:
    """Group ``layers``. Groups have the order of their first layers, except that the recurrent group is last."""
    members: dict[tuple[bool, int, bool], dict[int, CachedLayer]] = {}
    for number, layer in enumerate(layers):
        members.setdefault((layer.recurrent, layer.window, layer.chunked), {})[number] = layer
    found = []
    for (recurrent, window, chunked), group in sorted(members.items(), key=lambda item: item[0][0]):
        offsets, size = {}, 0
        for number, layer in group.items():
            offsets[number] = size
            size += layer.page_bytes
        found.append(LayerGroup(window, chunked, recurrent, offsets, size))
    return tuple(found)


def page_counts(
    layers: Iterable[CachedLayer], context: int, step_tokens: int, sequences: int, memory: int | None = None
) -> list[int]:
    """Number of pages of each group for ``sequences`` contexts of ``context`` tokens.

    A group has at least the pages of one context, plus one page for each sequence. Beyond this minimum, its pages take
    at most a quarter of ``memory`` (None: the memory of this machine). The system provides the memory of a page when
    the page is first touched. A step may add ``step_tokens`` tokens before a window slides.
    """
    pages = -(-context // PAGE)
    allowed = (machine_bytes() if memory is None else memory) // 4
    return [_page_count(group, pages, step_tokens, sequences, allowed) for group in groups_of(layers)]


def _page_count(group: LayerGroup, pages: int, step_tokens: int, sequences: int, allowed: int) -> int:
    if group.recurrent:
        pages = MAX_SNAPSHOTS + 2  # the snapshots, the sequence's state, and the next step's state
    elif group.window:
        sliding = -(-(group.window + SLACK + step_tokens) // PAGE) + 1
        pages = min(pages, sliding) + -(-group.window // PAGE) + 1
    return max(pages + sequences, min(pages * sequences, allowed // max(group.page_bytes, 1)))


# A pool of memory pages of one size, with a reference count for each page.


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
